import pytest

from nnunetv2_crossmatch.preprocessing.leaks import find_leaks


def content(**parts: dict[str, str]) -> dict:
    """part -> case -> a letter that stands for the image."""
    return {part: {case: {"sha256": image} for case, image in cases.items()} for part, cases in parts.items()}


def leaks(parts, patients=None, splits=()):
    return [(leak.is_error, leak.message) for leak in find_leaks(content(**parts), patients or {}, list(splits))]


CLEAN = {"imagesTr": {"a": "A", "b": "B"}, "unlabeled": {"u": "U", "v": "V"}, "imagesTs": {"t": "T"}}


def test_a_clean_dataset_has_none():
    assert leaks(CLEAN, {"a": "1", "b": "1", "u": "2", "v": "2", "t": "3"}, [{"train": ["a"], "val": ["b"]}]) == []


@pytest.mark.parametrize(
    ("one", "other", "is_error"),
    [
        ("imagesTr", "imagesTs", True),
        ("imagesTr", "imagesVal", True),
        ("unlabeled", "imagesTs", True),
        ("imagesTr", "unlabeled", True),
        ("imagesVal", "imagesTs", False),
        ("unlabeled", "unlabeled", False),
        ("imagesTr", "imagesTr", False),
        ("imagesTs", "imagesTs", False),
    ],
)
def test_the_same_image_is_found_with_both_names(one, other, is_error):
    parts = {part: dict(cases) for part, cases in CLEAN.items()}
    parts.setdefault(one, {})["x"] = "X"
    parts.setdefault(other, {})["y"] = "X"
    ((found, message),) = leaks(parts)
    assert found is is_error
    assert f"{one}/x" in message and f"{other}/y" in message


def test_twins_in_one_fold_are_an_error_only_if_it_parts_them():
    parts = {"imagesTr": {"a": "A", "b": "A", "c": "C"}}
    together = {"train": ["c"], "val": ["a", "b"]}
    assert [is_error for is_error, _ in leaks(parts, splits=[together])] == [False]
    ((is_error, message),) = leaks(parts, splits=[together, {"train": ["a", "c"], "val": ["b"]}])
    assert is_error and "in fold 1:" in message


def test_patients_in_training_and_test_are_an_error_in_both_kinds_of_training_a_warning():
    patients = {"a": "p1", "b": "p2", "u": "p1", "v": "p3", "t": "p3"}
    (test_error, message), (both_error, both) = sorted(leaks(CLEAN, patients), reverse=True)
    assert test_error and "Patient p3" in message and "unlabeled/v" in message and "imagesTs/t" in message
    assert not both_error and both.endswith("unlabelled scans: p1.")
