import pytest

from nnunetv2_crossmatch.utilities.durations import duration


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.4, "40 s"), (60, "1 min"), (3569, "59 min"), (3571, "1 h 0 min"), (100000, "27 h 47 min")]
)
def test_a_duration_reads_as_one_says_it(seconds, text):
    assert duration(seconds) == text
