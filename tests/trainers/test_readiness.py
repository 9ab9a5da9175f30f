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


def test_a_short_training_is_asked_sooner():
    readiness = Readiness(NAMES)
    follow(readiness, course(), epochs=5)
    assert readiness.started == 2


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
    three = [*NAMES, "middle"]
    # the third is as the first, which is known
    one = course(**{name: [[*row, row[0]] for row in values] for name, values in course(**lacking).items()})
    readiness = Readiness(three)
    follow(readiness, one)
    assert not readiness.active and not readiness.taught
    # after half of the training the others are taught without it
    said = readiness.update(50, 100, one)
    assert readiness.active and readiness.taught == ["left", "middle"]
    assert "left: now taught" in " ".join(said) and "right" not in " ".join(said)
    readiness = Readiness(three)
    # the third is as the second, which is not known: most are not
    two = course(**{name: [[*row, row[1]] for row in values] for name, values in course(**lacking).items()})
    assert readiness.update(59, 100, two) == []
    (said,) = readiness.update(60, 100, two)
    assert "are not used" in said and said.count(reason) == 2 and "left" not in said and not readiness.active
    assert readiness.update(61, 100, one) == [], "it is said once, and it does not begin any more"


def test_half_of_the_classes_are_not_most_of_them():
    readiness = Readiness(NAMES)
    follow(readiness, course(dice=[[0.8, 0.3]] * 62))
    assert readiness.ended == 60 and not readiness.taught


def test_a_class_without_validation_voxels_is_judged_by_the_unlabeled_scans_alone():
    readiness = Readiness(NAMES)
    follow(readiness, course(dice=[[0.8, np.nan]] * 8))
    assert sorted(readiness.taught) == ["left", "right"]


def test_a_class_whose_dice_falls_is_muted_and_comes_back():
    readiness = Readiness(NAMES)
    fallen = [[0.8, 0.8]] * 8 + [[0.85, 0.6]] * 4 + [[0.85, 0.8]] * 6
    said = follow(readiness, course(dice=fallen))
    assert any("right: not taught" in line and "from 0.80 to" in line for line in said)
    assert said[-1].startswith("right: now taught") and readiness.active


def test_a_class_that_spreads_over_the_unlabeled_scans_is_muted_too():
    readiness = Readiness(NAMES)
    said = follow(readiness, course(share=[[1.0, 1.0]] * 8 + [[1.0, 7.0]] * 4))
    assert readiness.taught == ["left"] and "right: not taught from unlabeled scans any more, it takes" in said[-1]


def test_what_labeled_patches_do_not_show_is_not_asked_of_the_unlabeled_ones():
    readiness = Readiness(NAMES)
    follow(readiness, course(share=[[1.0, np.nan]] * 8))
    assert sorted(readiness.taught) == ["left", "right"] and readiness.stages() == [(6.0, "self-training")]


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


def slide(start: float, end: float, epochs: int) -> list[list[float]]:
    return [[value, value] for value in np.linspace(start, end, epochs)]


# what harms, as the curves of a training show it: each is held back by the gate, or turned back from soon after
UNKNOWN = {"dice": slide(0.0, 0.2, 61), "stability": [[np.nan, np.nan]] * 61, "share": [[0.0, 0.0]] * 61}
HELD_BACK = {
    "scans of another organ, where nothing is found": {"stability": [[0.75, 0.7]] * 61, "share": [[0.05, 0.1]] * 61},
    "inverted intensities: everything around the organ is the organ": {"share": [[14.0, 9.0]] * 61},
    "labels that jump from epoch to epoch": {"stability": [[0.4, 0.5]] * 61, "share": [[0.5, 2.0]] * 61},
    "too few steps to know a class": UNKNOWN,
}


@pytest.mark.parametrize("sabotage", HELD_BACK)
def test_scans_that_the_network_does_not_understand_never_teach(sabotage):
    readiness = Readiness(NAMES)
    (said,) = follow(readiness, course(**HELD_BACK[sabotage]))
    assert "are not used" in said and readiness.started is None and readiness.ended == 60


@pytest.mark.parametrize("fallen", [0.6, 0.0])
@pytest.mark.parametrize("epochs", [2, 10, 40])
def test_labels_of_something_else_that_pass_the_gate_are_turned_back(epochs, fallen):
    """Another organ of the same size: what is learned from it costs Dice, at once or slowly."""
    readiness = Readiness(NAMES)
    dice = np.array([[0.8, 0.8]] * 10 + slide(0.8, fallen, epochs) + [[fallen, fallen]] * 10)
    said = follow(readiness, course(dice=dice))
    assert readiness.started == 6 and readiness.ended is not None and not readiness.taught
    assert "Self-training ends" in said[-1]
    # the means of three epochs are one or two behind
    lost = 0.8 - dice[readiness.ended - 3, 0]
    assert lost < 0.08 + 2 * max(-np.diff(dice[:, 0])), "no later than the Dice shows it"


def test_a_start_at_once_is_judged_by_the_first_dice_there_is():
    """Begun by force with whatever voxels are confident: the network forgets what it had begun to find."""
    readiness = Readiness(NAMES, at=0)
    dice = [[np.nan, np.nan]] * 2 + [[0.4, 0.3]] * 3 + [[0.1, 0.0]] * 6
    said = follow(readiness, course(dice=dice))
    assert readiness.started == 0 and readiness.ended == 6 and "Self-training ends" in said[-1]


def test_one_class_that_is_harmed_is_muted_before_the_mean_falls():
    names = ["a", "b", "c"]
    readiness, epochs = Readiness(names), 14
    dice = np.full((epochs, 3), 0.8)
    dice[9:, 2] = 0.6
    curves = {"dice": dice, "stability": np.full((epochs, 3), 0.9), "share": np.ones((epochs, 3))}
    said = follow(readiness, curves)
    assert readiness.active and readiness.taught == ["a", "b"]
    assert "c: not taught from unlabeled scans any more, its validation Dice fell" in said[-1]
