"""Two evaluations of the same cases: what is the difference, and can the data tell?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import FOREGROUND, Evaluation, statistic

TIE = 0.001  # Dice: a tenth of a point, the last digit that is printed
MARGIN = 0.01  # Dice: a difference below one point is no help worth having
FEWEST = 6  # with fewer, no order of signs reaches p < 0.05 in Wilcoxon's two-sided test
_PERFECT = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # in the order of METRICS


@dataclass(frozen=True)
class Difference:
    """Of one class and metric, other minus reference; NaN where there are too few values.

    Attributes:
        mean: with ``low`` and ``high``, the ends of the 95 % percentile bootstrap interval over units.
        p: Wilcoxon's two-sided signed-rank test over units.
        wins, ties, losses: units in which the other is better, as good (within ``TIE``; distances: equal), or worse.
    """

    mean: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int

    @property
    def units(self) -> int:
        return self.wins + self.ties + self.losses


def differences(reference: Evaluation, other: Evaluation) -> NDArray[np.float64]:
    """Other minus reference, (cases, classes, metrics).

    Where the truth and one prediction lack a class, that prediction has nothing to measure: it counts as perfect
    beside the other one's invention. NaN where both lack it.
    """
    before, after = reference.values, other.values
    one = np.isnan(before) ^ np.isnan(after)
    perfect = np.broadcast_to(_PERFECT, before.shape)
    return np.where(one & np.isnan(after), perfect, after) - np.where(one & np.isnan(before), perfect, before)


def by_unit(values: NDArray[np.float64], units: list[str]) -> NDArray[np.float64]:
    """Mean over the cases of each unit (a patient, whose scans are not independent), in the order of first sight."""
    names = np.array(units)
    with np.errstate(invalid="ignore"):
        grouped = [values[names == name] for name in dict.fromkeys(units)]
        counts = [(~np.isnan(group)).sum(0) for group in grouped]
        return np.array([np.nansum(group, 0) / count for group, count in zip(grouped, counts, strict=True)])


def compare(reference: Evaluation, other: Evaluation, units: list[str]) -> dict[str, dict[str, Difference]]:
    """Every class, and first the mean of the classes, in every metric.

    Args:
        units: of each case, what is drawn as a whole: its patient, or the case itself.
    """
    values = by_unit(differences(reference, other), units)
    chosen = {FOREGROUND: slice(None)} | {name: slice(i, i + 1) for i, name in enumerate(reference.classes)}
    return {
        name: {metric: _difference(values[:, classes, i], metric) for i, metric in enumerate(METRICS)}
        for name, classes in chosen.items()
    }


def _difference(values: NDArray[np.float64], metric: str) -> Difference:
    """Of (units, classes)."""
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        nan = float("nan")
        return Difference(nan, nan, nan, nan, 0, 0, 0)
    interval = statistic(values)
    means = np.nanmean(values, axis=1)
    overlap = metric in METRICS[:2]
    better = means if overlap else -means
    tie = TIE if overlap else 0.0
    wins, losses = int((better > tie).sum()), int((better < -tie).sum())
    p = float(wilcoxon(means).pvalue) if means.any() else 1.0
    return Difference(interval.mean, interval.low, interval.high, p, wins, len(means) - wins - losses, losses)


def format_p(p: float) -> str:
    return "-" if np.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def verdict(difference: Difference, noun: str) -> str:
    """In a plain sentence, from the foreground's Dice; ``noun`` is what the units are, e.g. "cases".

    A difference has to pass both the interval, which few and odd values mislead, and Wilcoxon's test.
    """
    if difference.units < FEWEST:
        return f"The data cannot tell: {difference.units} {noun} are too few, {FEWEST} are the least."
    low, mean, high = (100 * value for value in (difference.low, difference.mean, difference.high))
    figures = (
        f"{mean:+.1f} Dice, 95 % interval {low:+.1f} to {high:+.1f}, "
        f"{difference.wins} of {difference.units} {noun} better, {difference.losses} worse (p {format_p(difference.p)})"
    )
    if low > 0 and difference.p < 0.05:
        return f"Helps: {figures}."
    if high < 0 and difference.p < 0.05:
        return f"Does not help, it harms: {figures}."
    if low > -100 * MARGIN and high < 100 * MARGIN:
        return f"Does not help: {figures}; a difference of a point can be excluded."
    return f"The data cannot tell: {figures}."
