"""What the numbers of many cases come to: mean, standard deviation and a bootstrap interval."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from nnunetv2_crossmatch.evaluation.case import METRICS

MEAN_OF_CLASSES = "mean of classes"
RESAMPLES, SEED = 9999, 0


@dataclass(frozen=True)
class Evaluation:
    """Every metric of every case and class, for a paired comparison or :func:`summarize`.

    Attributes:
        values: (cases, classes, metrics) in the order of ``METRICS``; Dice and Jaccard in [0, 1]. NaN where
            neither mask has the class.
        missed: (cases, classes), where only one of the two masks has the class.
        in_reference: (cases, classes), where the reference has the class.
        extra: predictions without a reference, which were left alone.
        left_out: what lies in the folder of references and is none, a line for each kind.
        odd_headers: masks whose header has another geometry than their scan, and in what it differs.
        without_spacing: whether they are photographs (PNG), whose distances in mm are in pixels, too.
    """

    cases: list[str]
    classes: list[str]
    values: NDArray[np.float64]
    missed: NDArray[np.bool_]
    in_reference: NDArray[np.bool_]
    extra: list[str]
    left_out: list[str] = field(default_factory=list)
    odd_headers: dict[Path, str] = field(default_factory=dict)
    without_spacing: bool = False


@dataclass(frozen=True)
class Statistic:
    """Mean, sample standard deviation and the ends of the 95 % interval; NaN where there are too few cases."""

    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One class. ``cases`` counts all of them; the ``undefined`` are left out of the means, the ``missed`` are not."""

    statistics: dict[str, Statistic]
    cases: int
    undefined: int
    missed: int


def isic_score(evaluation: Evaluation) -> float:
    """Threshold Jaccard: the images' mean, each below 0.65 counting as 0.

    By it task 1 of the ISIC 2018 challenge was ranked (Codella et al., arXiv 1902.03368; https://challenge.isic-archive.com/landing/2018/45).
    """
    jaccard = evaluation.values[..., METRICS.index("jaccard")]
    return float(np.nanmean(np.where(jaccard < 0.65, 0.0, jaccard)))


def summarize(evaluation: Evaluation) -> dict[str, Summary]:
    """Each class and, first, the foreground: the mean of the class means, as in nnU-Net's ``summary.json``.

    The foreground's counts are the sums of those of the classes.
    """
    chosen = {MEAN_OF_CLASSES: slice(None)} | {name: slice(i, i + 1) for i, name in enumerate(evaluation.classes)}
    return {
        name: Summary(
            {metric: statistic(evaluation.values[:, classes, i]) for i, metric in enumerate(METRICS)},
            cases=len(evaluation.cases),
            undefined=int(np.isnan(evaluation.values[:, classes, 0]).sum()),
            missed=int(evaluation.missed[:, classes].sum()),
        )
        for name, classes in chosen.items()
    }


def statistic(values: NDArray[np.float64]) -> Statistic:
    """Mean of the class means over (cases, classes), NaN being no value.

    The standard deviation is that of the cases' own means. The interval is the percentile bootstrap's: whole cases
    are drawn, ``RESAMPLES`` times, always with the seed ``SEED``.
    """
    values = values[~np.isnan(values).all(axis=1)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # no case, or one of several classes, has a value
        mean = float(_mean_of_class_means(*values.T))
        if len(values) < 2:
            return Statistic(mean, *[float("nan")] * 3)
        interval = bootstrap(
            tuple(values.T),
            _mean_of_class_means,
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=RESAMPLES,
            batch=500,  # bounds the memory
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
    std = float(np.nanmean(values, axis=1).std(ddof=1))
    return Statistic(mean, std, float(interval.low), float(interval.high))


def _mean_of_class_means(*classes: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.nanmean([np.nanmean(values, axis=axis) for values in classes], axis=0)
