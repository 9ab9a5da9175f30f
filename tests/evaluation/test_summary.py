import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, Evaluation, isic_score, statistic, summarize


def plain_interval(values: np.ndarray) -> np.ndarray:
    """The percentile bootstrap as a loop over cases drawn with another generator."""
    rng = np.random.RandomState(7)
    drawn = [values[rng.randint(len(values), size=len(values))] for _ in range(4000)]
    return np.percentile([np.nanmean(np.nanmean(cases, axis=0)) for cases in drawn], [2.5, 97.5])


@pytest.mark.parametrize("classes", [1, 3])
def test_the_interval_is_that_of_a_plain_resampling_of_cases(classes):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 1)) + rng.gamma(1.0, size=(30, classes))
    values[:5, 0] = np.nan
    result = statistic(values)
    width = result.high - result.low
    assert [result.low, result.high] == pytest.approx(
        plain_interval(values[np.isfinite(values).any(1)]), abs=width / 20
    )
    assert result.low < result.mean < result.high
    assert statistic(values) == result


def test_the_foreground_is_the_mean_of_class_means_and_undefined_cases_are_left_out():
    values = np.array([[0.9, 0.5], [0.7, np.nan], [np.nan, np.nan]])
    assert statistic(values).mean == pytest.approx((0.8 + 0.5) / 2)
    assert statistic(values).std == pytest.approx(np.std([0.7, 0.7], ddof=1))
    assert statistic(values[:, :1]).mean == pytest.approx(0.8)
    assert statistic(values[:, :1]).std == pytest.approx(0.1 * 2**0.5)


@pytest.mark.filterwarnings("error")
def test_too_few_cases_make_no_interval_and_none_no_mean():
    one, none = statistic(np.array([[0.5]])), statistic(np.array([[np.nan], [np.nan]]))
    assert one.mean == 0.5 and np.isnan([one.std, one.low, one.high]).all()
    assert np.isnan([none.mean, none.std, none.low, none.high]).all()
    half = statistic(np.array([[0.5, np.nan], [0.7, np.nan]]))
    assert half.mean == pytest.approx(0.6) and 0.5 <= half.low < half.high <= 0.7
    same = statistic(np.full((4, 1), 0.5))
    assert (same.mean, same.std, same.low, same.high) == (0.5, 0, 0.5, 0.5)


def test_each_class_and_metric_has_its_own_numbers_and_counts():
    values = np.arange(2 * 3 * len(METRICS), dtype=float).reshape(3, 2, len(METRICS))
    values[2, 1] = np.nan
    missed = np.array([[False, True], [False, True], [True, False]])
    summaries = summarize(Evaluation(["a", "b", "c"], ["shell", "core"], values, missed, missed, []))
    assert list(summaries) == [MEAN_OF_CLASSES, "shell", "core"]
    counts = {name: (s.cases, s.undefined, s.missed) for name, s in summaries.items()}
    assert counts == {MEAN_OF_CLASSES: (3, 1, 3), "shell": (3, 0, 1), "core": (3, 1, 2)}
    for i, metric in enumerate(METRICS):
        shell, core = (summaries[name].statistics[metric].mean for name in ("shell", "core"))
        assert (shell, core) == (values[:, 0, i].mean(), values[:2, 1, i].mean())
        assert summaries[MEAN_OF_CLASSES].statistics[metric].mean == (shell + core) / 2


def test_isics_score_takes_nothing_below_its_threshold():
    jaccards = [0.9, 0.65, 0.649, 0.0]
    values = np.full((4, 1, len(METRICS)), 0.99)
    values[:, 0, METRICS.index("jaccard")] = jaccards
    none = np.zeros((4, 1), bool)
    assert isic_score(Evaluation(list("abcd"), ["lesion"], values, none, ~none, [])) == pytest.approx((0.9 + 0.65) / 4)
