import pytest

from nnunetv2_crossmatch.preprocessing.leaks import find_leaks


def content(**parts: dict[str, str]) -> dict:
    """part -> case -> a letter that stands for the image."""
    return {part: {case: {"voxels": image} for case, image in cases.items()} for part, cases in parts.items()}


def leaks(parts, patients=None, splits=()):
    found = find_leaks(content(**parts), patients or {}, dict(enumerate(splits)))
    return [(leak.is_error, leak.message) for leak in found]


CLEAN = {"imagesTr": {"a": "A", "b": "B"}, "unlabeled": {"u": "U", "v": "V"}, "imagesTs": {"t": "T"}}


def test_a_clean_dataset_has_none():
    assert leaks(CLEAN, {"a": "1", "b": "4", "u": "2", "v": "2", "t": "3"}, [{"train": ["a"], "val": ["b"]}]) == []


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
    patients = {"a": "p1", "b": "p2", "u": "p1", "v": "p3", "t": "p3", "w": "p4", "x": "p4"}
    parts = CLEAN | {"imagesVal": {"w": "W"}, "imagesTs": {"t": "T", "x": "X"}}
    error, *warnings = sorted(leaks(parts, patients), reverse=True)
    assert error == (
        True,
        "Patient p3 is in training and held out: unlabeled/v, imagesTs/t. Remove one or the other.",
    )
    assert sorted(warnings) == [
        (False, "Patient p1 is in two parts: imagesTr/a, unlabeled/u."),
        (False, "Patient p4 is in two parts: imagesTs/x, imagesVal/w."),
    ]


def test_a_patient_on_both_sides_of_a_fold_is_an_error():
    folds = [{"train": ["a"], "val": ["b"]}, {"train": [], "val": ["a", "b"]}]
    ((is_error, message),) = leaks(CLEAN, {"a": "p", "b": "p"}, folds)
    assert is_error and message.startswith("Patient p trains and validates in fold 0: imagesTr/a, imagesTr/b.")
