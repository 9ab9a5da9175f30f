import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from nnunetv2_crossmatch.comparison.compare import mean_of_seeds
from nnunetv2_crossmatch.comparison.paired import (
    Difference,
    beside_repeats,
    by_unit,
    compare,
    format_p,
    scores,
    verdict,
)
from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, Evaluation

HD95_MM = METRICS.index("hd95_mm")


def evaluation(dices, distance=1.0) -> Evaluation:
    """Of (cases, classes); all distances are the same, NaN where Dice is."""
    dices = np.array(dices, float)
    values = np.where(np.isnan(dices), np.nan, distance)[..., None].repeat(len(METRICS), -1)
    values[..., :2] = dices[..., None]
    names = [f"case{i}" for i in range(len(dices))]
    return Evaluation(names, [f"class{i}" for i in range(dices.shape[1])], values, dices == 0, dices >= 0, [])


def exact_p(values) -> float:
    """Wilcoxon's two-sided p by trying every order of signs (no ties, no zeros)."""
    ranks = np.abs(values).argsort().argsort() + 1
    center = ranks.sum() / 2
    seen = abs(ranks[values > 0].sum() - center)
    signs = itertools.product([0, 1], repeat=len(values))
    return np.mean([abs(np.dot(s, ranks) - center) >= seen for s in signs])


def test_differences_means_counts_and_p_are_those_of_a_slow_oracle():
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 0.8, (9, 2))
    after = before + rng.normal(0.03, 0.05, (9, 2))
    after[3] = before[3] + 0.0004  # a tie
    result = compare(evaluation(before, 5.0), evaluation(after, 4.0), [f"case{i}" for i in range(9)])
    for name, change in ((MEAN_OF_CLASSES, (after - before).mean(1)), ("class1", (after - before)[:, 1])):
        d = result[name]["dice"]
        assert (d.mean, d.median) == pytest.approx((change.mean(), sorted(change)[4]))
        assert (d.wins, d.ties, d.losses) == (
            (change > 0.001).sum(),
            (abs(change) <= 0.001).sum(),
            (change < -0.001).sum(),
        )
        assert d.p == pytest.approx(exact_p(change))
        drawn = [rng.choice(change, len(change)).mean() for _ in range(4000)]
        assert [d.low, d.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.004)
    nearer = result["class0"]["hd95_mm"]
    assert (nearer.mean, nearer.wins, nearer.losses) == (-1.0, 9, 0)


def test_what_neither_truth_nor_prediction_has_is_perfect_whatever_the_other_model_invents():
    nan = np.nan
    before = evaluation([[nan, 0.5], [0.0, 0.5], [nan, 0.5]], 9.0)
    after = evaluation([[0.0, 0.6], [nan, 0.5], [nan, 1]], 3.0)
    change = scores(after) - scores(before)
    assert change[:, 0, 0].tolist() == [-1, 1, 0] and change[:, 0, HD95_MM].tolist() == [3, -9, 0]
    assert change[:, 1, 0] == pytest.approx([0.1, 0.0, 0.5])


def test_scans_of_one_patient_are_one_unit():
    values = np.array([[1.0, 4.0], [3.0, 0.0], [5.0, 2.0], [7.0, 1.0]])
    np.testing.assert_array_equal(by_unit(values, ["p", "q", "p", "q"]), [[3.0, 3.0], [5.0, 0.5]])
    same = evaluation([[0.5]] * 8)
    assert compare(same, same, ["p", "q"] * 4)[MEAN_OF_CLASSES]["dice"].units == 2


def test_equal_models_tie_with_p_1():
    d = compare(evaluation([[0.5]] * 7), evaluation([[0.5]] * 7), list("abcdefg"))[MEAN_OF_CLASSES]["dice"]
    assert d == Difference(0, 0, 0, 0, 1, 0, 0, 7, 0)


@pytest.mark.parametrize(
    ("low", "high", "p", "units", "begins"),
    [
        (0.008, 0.034, 0.01, 40, "Helps: +2.1 Dice, 95 % interval +0.8 to +3.4, 34 of 40 cases better, "),
        (0.008, 0.034, 0.06, 40, "The data cannot tell: +2.1 Dice"),
        (-0.034, -0.008, 0.01, 40, "Does not help, it harms: -2.1 Dice"),
        (-0.034, -0.008, 0.06, 40, "The data cannot tell: -2.1 Dice"),
        (0.001, 0.008, 0.001, 40, "Does not help: +0.5 Dice"),
        (0.001, 0.008, 0.001, 19, "Helps: +0.5 Dice"),
        (-0.005, 0.004, 0.6, 19, "The data cannot tell"),
        (-0.005, 0.004, 0.6, 40, "Does not help: -0.1 Dice"),
        (-0.02, 0.03, 0.6, 40, "The data cannot tell: +0.5 Dice"),
        (
            np.nan,
            np.nan,
            np.nan,
            5,
            "The data cannot tell: 5 cases are too few, 6 are the least. More cases: validate all",
        ),
    ],
)
def test_the_verdict_says_what_the_interval_says(low, high, p, units, begins):
    wins = min(34, units)
    mean = (low + high) / 2
    difference = Difference(mean, mean, low, high, p, 0.0223, wins, 0, units - wins)
    found = verdict(difference, "cases")
    kinds = {"Helps": "helps", "The data cannot tell": "cannot-tell", "Does not help, it harms": "harms"}
    kind = next((kind for beginning, kind in kinds.items() if begins.startswith(beginning)), "no-help")
    assert found.sentence.startswith(begins) and found.kind == kind
    could_show = f"{units} cases like these can show a difference from about 2.2 points on."
    assert found.sentence.endswith(could_show) == (kind == "cannot-tell" and units >= 6)


def test_the_detectable_difference_is_found_by_four_of_five_studies():
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 0.8, 8)
    change = rng.normal(0, 0.05, 8)
    d = compare(evaluation(before[:, None]), evaluation((before + change)[:, None]), list("abcdefgh"))["class0"]["dice"]
    studies = rng.normal(d.detectable, change.std(ddof=1), (5000, 8))
    assert (ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("change", [[0.05] * 5 + [-0.002], [0.0] * 6, [0.0004] * 6])
def test_what_can_be_shown_is_not_said_where_it_contradicts_what_was_found(change):
    after = 0.5 + np.array(change)[:, None]
    found = compare(evaluation([[0.5]] * 6), evaluation(after), list("abcdef"))[MEAN_OF_CLASSES]["dice"]
    found = replace(found, p=0.0625)
    assert verdict(found, "cases").kind == "cannot-tell" and "can show" not in verdict(found, "cases").sentence


def test_a_seed_that_invents_a_class_lowers_the_mean_of_seeds_and_none_leaves_it_undefined():
    nan = np.nan
    mean = mean_of_seeds([evaluation([[nan, 0.5], [nan, 0.0]]), evaluation([[0.0, 0.7], [nan, 0.6]])])
    np.testing.assert_allclose(mean.values[:, :, 0], [[0.5, 0.6], [nan, 0.3]])
    assert mean.missed.tolist() == [[True, False], [False, True]]


def test_a_difference_has_an_interval_over_seeds():
    """Welch's, as in any textbook: means 0.80 and 0.83, variances 0.0001 and 0.0004 of three each."""
    before, after = np.array([0.79, 0.80, 0.81]), np.array([0.81, 0.83, 0.85])
    error = np.sqrt((0.0001 + 0.0004) / 3)
    freedom = (0.0005 / 3) ** 2 / (((0.0001 / 3) ** 2 + (0.0004 / 3) ** 2) / 2)
    half = 100 * error * t.ppf(0.975, freedom)
    between = f"it would lie between {3 - half:+.1f} and {3 + half:+.1f} (95 %)"
    assert f"Over 3 seeds the difference is +3.0 points, and with others {between}." in beside_repeats(before, after)
    assert beside_repeats(before[:1], after[:1]) == ""


def test_few_units_have_a_mean_and_no_interval():
    d = compare(evaluation([[0.5]] * 5), evaluation([[0.6], [0.6], [0.6], [0.6], [0.7]]), list("abcde"))["class0"][
        "dice"
    ]
    assert (d.mean, d.median, d.wins) == (pytest.approx(0.12), pytest.approx(0.1), 5)
    assert np.isnan([d.low, d.high, d.p]).all() and format_p(d.p) == "-"
