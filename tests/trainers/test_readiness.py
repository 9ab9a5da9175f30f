"""Courses of a training, epoch by epoch, and what is decided of them."""

import numpy as np
import pytest

from nnunetv2_crossmatch.trainers.readiness import Readiness

NAMES = ["left", "right"]


def course(**columns) -> dict[str, np.ndarray]:
    """Ready from the first epoch on, but for what is given: curve -> (value of left, value of right) of each epoch."""
    epochs = len(next(iter(columns.values()), [0] * 10))
    curves = {"dice": [[0.8, 0.8]] * epochs, "stability": [[0.9, 0.9]] * epochs, "share": [[1.0, 1.0]] * epochs}
    return {name: np.array(values, float) for name, values in {**curves, **columns}.items()}


def follow(readiness: Readiness, curves: dict[str, np.ndarray], epochs: int = 100) -> list[str]:
    """Each epoch's decision from the epochs before it."""
    said = []
    for epoch in range(len(curves["dice"]) + 1):
        said += readiness.update(epoch, epochs, {name: values[:epoch] for name, values in curves.items()})
    return said


def test_it_begins_when_both_windows_are_full_and_every_class_is_known():
    readiness = Readiness(NAMES)
    said = follow(readiness, course())
    assert readiness.started == 6 and readiness.active and sorted(readiness.taught) == ["left", "right"]
    assert said[0] == "Self-training on the unlabeled scans begins with epoch 6."


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"dice": [[0.8, 0.3]] * 10}, "validation Dice 0.30"),
        ({"stability": [[0.9, 0.6]] * 10}, "labels of unlabeled scans still change"),
        ({"stability": [[0.9, np.nan]] * 10}, "labels of unlabeled scans still change"),
        ({"share": [[1.0, 0.1]] * 10}, "0.1 times its labeled share"),
        ({"share": [[1.0, 6.0]] * 10}, "6 times its labeled share"),
        ({"dice": [[0.8, 0.02 + 0.09 * i] for i in range(10)]}, "still rising"),
    ],
    ids=["dice", "stability", "never predicted", "too little", "too much", "rising"],
)
def test_one_class_that_is_not_known_holds_all_back_for_a_while(lacking, reason):
    readiness = Readiness(NAMES)
    follow(readiness, course(**lacking))
    assert not readiness.active and not readiness.taught
    # after half of the training the other one is taught alone
    said = readiness.update(50, 100, course(**lacking))
    assert readiness.active and readiness.taught == ["left"]
    assert "left: now taught" in " ".join(said) and "right" not in " ".join(said)
    readiness = Readiness(NAMES)
    lacking = {name: [[row[1], row[1]] for row in values] for name, values in lacking.items()}
    assert readiness.update(59, 100, course(**lacking)) == []
    (said,) = readiness.update(60, 100, course(**lacking))
    assert "were not used" in said and said.count(reason) == 2 and not readiness.active
    assert readiness.update(61, 100, course()) == [], "it is said once, and it does not begin any more"


def test_a_class_without_validation_voxels_is_judged_by_the_unlabeled_scans_alone():
    readiness = Readiness(NAMES)
    follow(readiness, course(dice=[[0.8, np.nan]] * 8))
    assert sorted(readiness.taught) == ["left", "right"]


def test_a_class_whose_dice_falls_is_muted_and_comes_back():
    readiness = Readiness(NAMES)
    fallen = [[0.8, 0.8]] * 8 + [[0.85, 0.6]] * 4 + [[0.85, 0.8]] * 4
    said = follow(readiness, course(dice=fallen))
    assert any("right: not taught" in line and "from 0.80 to" in line for line in said)
    assert said[-1].startswith("right: now taught") and readiness.active


def test_when_the_mean_falls_it_ends_for_good():
    readiness = Readiness(NAMES)
    said = follow(readiness, course(dice=[[0.8, 0.8]] * 8 + [[0.7, 0.7]] * 6))
    assert readiness.ended == 11 and not readiness.active and not readiness.taught
    assert "fell by 0.100" in said[-1] and "labeled scans alone" in said[-1]


def test_the_state_is_plain_and_goes_on_as_if_nothing_had_happened():
    curves = course(dice=[[0.8, 0.8]] * 8 + [[0.7, 0.7]] * 6)
    through, first = Readiness(NAMES), Readiness(NAMES)
    follow(through, curves)
    for epoch in range(9):
        first.update(epoch, 100, {name: values[:epoch] for name, values in curves.items()})
    second = Readiness(NAMES)
    second.load(first.state())
    for epoch in range(9, 15):
        second.update(epoch, 100, {name: values[:epoch] for name, values in curves.items()})
    assert second.state() == through.state() and set(map(type, through.state().values())) <= {
        int,
        list,
        dict,
        type(None),
    }
