import re

import pytest

from tests.conftest import REPOSITORY, run

pytestmark = pytest.mark.slow


def test_preprocessing_killed_at_random_instants_leaves_nothing_half_written(dataset):
    """The short form; more kills by hand."""
    line = "-d 901 -p nnUNetPlansSmall -np 1 --kills 8 --seconds 0.4"
    said = run("python", REPOSITORY / "scripts" / "kill_preprocessing.py", *line.split()).stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (.+)", said)}
    assert (counts["kills"], counts["failures"]) == (8, 0)
