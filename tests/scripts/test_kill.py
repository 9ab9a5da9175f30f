import re

import pytest

from tests.conftest import REPOSITORY, run

pytestmark = pytest.mark.slow


def test_a_training_killed_at_random_instants_loses_nothing(dataset):
    """The short form; more kills by hand."""
    line = "-d 901 -c 2d -p nnUNetPlansSmall -tr nnUNetTrainerCrossMatch --kills 6 --seconds 4"
    said = run("python", REPOSITORY / "scripts" / "kill.py", *line.split()).stdout
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (.+)", said)}
    assert (counts["kills"], counts["failures"]) == (6, 0)
    assert counts["lives that went on from a checkpoint"] > 0
