"""Two evaluations of the same cases: what is the difference, and can the data tell?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t, ttest_ind, wilcoxon

from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, Evaluation, statistic

POWER = 0.8
TIE = 0.001  # Dice: a tenth of a point, the last digit that is printed
MARGIN = 0.01  # Dice: a difference below one point is no help worth having
FEWEST = 6  # with fewer, no order of signs reaches p < 0.05 in Wilcoxon's two-sided test
ENOUGH_TO_EXCLUDE = 20  # the bootstrap's interval is too narrow for a few units
WAY_OUT = (
    "More cases: validate all folds; or keep a test set (imagesTs, labelsTs) and use --test; or try the method on a "
    "public dataset of the same organ, some of whose labels nnUNetv2_crossmatch hide-labels hides."
)
_PERFECT = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # in the order of METRICS


@dataclass(frozen=True)
class Difference:
    """Of one class and metric, other minus reference.

    Attributes:
        mean: with ``low`` and ``high``, the ends of the 95 % percentile bootstrap interval over units.
        p: Wilcoxon's two-sided signed-rank test over units. NaN, as the interval, for fewer than ``FEWEST`` units.
        median: over units.
        detectable: about the smallest difference that so many units, spread as these are, show in ``POWER`` of all
            studies: (t(0.975) + t(0.8)) * standard deviation / sqrt(units). An estimate: it is a paired t-test's, and
            :func:`verdict` asks other tests. NaN for one unit.
        wins, ties, losses: units in which the other is better, as good (within ``TIE``; distances: equal), or worse.
    """

    mean: float
    median: float
    low: float
    high: float
    p: float
    detectable: float
    wins: int
    ties: int
    losses: int

    @property
    def units(self) -> int:
        return self.wins + self.ties + self.losses


def scores(evaluation: Evaluation) -> NDArray[np.float64]:
    """(cases, classes, metrics). A class that neither truth nor prediction has is perfect: it must not matter to one
    model's score that another one invents the class."""
    return np.where(np.isnan(evaluation.values), _PERFECT, evaluation.values)


def by_unit(values: NDArray[np.float64], units: list[str]) -> NDArray[np.float64]:
    """Mean over the cases of each unit (a patient, whose scans are not independent), in the order of first sight."""
    names = np.array(units)
    return np.array([values[names == name].mean(0) for name in dict.fromkeys(units)])


def class_columns(evaluation: Evaluation) -> dict[str, slice]:
    """Every class, and first the mean of the classes."""
    return {MEAN_OF_CLASSES: slice(None)} | {name: slice(i, i + 1) for i, name in enumerate(evaluation.classes)}


def compare(reference: Evaluation, other: Evaluation, units: list[str]) -> dict[str, dict[str, Difference]]:
    """Every class, and first the mean of the classes, in every metric.

    Args:
        units: of each case, what is drawn as a whole: its patient, or the case itself.
    """
    values = by_unit(scores(other) - scores(reference), units)
    return {
        name: {metric: _difference(values[:, columns, i], metric) for i, metric in enumerate(METRICS)}
        for name, columns in class_columns(reference).items()
    }


def _difference(values: NDArray[np.float64], metric: str) -> Difference:
    """Of (units, classes)."""
    interval = statistic(values)
    means = values.mean(axis=1)
    overlap = metric in METRICS[:2]
    better = means if overlap else -means
    tie = TIE if overlap else 0.0
    wins, losses = int((better > tie).sum()), int((better < -tie).sum())
    counts = wins, len(means) - wins - losses, losses
    center = interval.mean, float(np.median(means))
    detectable = float(t.ppf([0.975, POWER], len(means) - 1).sum() * interval.std / np.sqrt(len(means)))
    low = high = p = float("nan")
    if len(means) >= FEWEST:
        low, high, p = interval.low, interval.high, float(wilcoxon(means).pvalue) if means.any() else 1.0
    return Difference(*center, low, high, p, detectable, *counts)


def beside_repeats(before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    """The difference with its interval over seeds (Welch), as other trainings would differ; "" for one seed.

    Args:
        before, after: mean Dice of every seed, of the reference and of the other.
    """
    if len(before) < 2:
        return ""
    low, high = ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    return (
        f" Over {len(before)} seeds the difference is {100 * (after.mean() - before.mean()):+.1f} points, and with "
        f"others it would lie between {100 * low:+.1f} and {100 * high:+.1f} (95 %)."
    )


def format_p(p: float) -> str:
    if np.isnan(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True)
class Verdict:
    """Did it help? ``sentence`` says in words what ``kind`` says."""

    kind: Literal["helps", "harms", "no-help", "cannot-tell"]
    sentence: str


def verdict(difference: Difference, noun: str) -> Verdict:
    """From the foreground's Dice; ``noun`` is what the units are, e.g. "cases".

    A difference has to pass both the interval, which few and odd values mislead, and Wilcoxon's test.
    """
    if difference.units < FEWEST:
        too_few = f"The data cannot tell: {difference.units} {noun} are too few, {FEWEST} are the least. {WAY_OUT}"
        return Verdict("cannot-tell", too_few)
    low, mean, high = (100 * value for value in (difference.low, difference.mean, difference.high))
    figures = (
        f"{mean:+.1f} Dice, 95 % interval {low:+.1f} to {high:+.1f}, {difference.wins} of {difference.units} {noun} "
        f"better, {difference.losses} worse (p {format_p(difference.p)})"
    )
    if max(-low, high) < 100 * MARGIN and difference.units >= ENOUGH_TO_EXCLUDE:
        return Verdict("no-help", f"Does not help: {figures}; a difference of a point can be excluded.")
    if low > 0 and difference.p < 0.05:
        return Verdict("helps", f"Helps: {figures}.")
    if high < 0 and difference.p < 0.05:
        return Verdict("harms", f"Does not help, it harms: {figures}.")
    enough = ""
    if max(abs(difference.mean), TIE) < difference.detectable:  # else what was found contradicts the estimate
        points = f"{100 * difference.detectable:.1f} points"
        enough = f" {difference.units} {noun} like these can show a difference from about {points} on."
    return Verdict("cannot-tell", f"The data cannot tell: {figures}.{enough}")
