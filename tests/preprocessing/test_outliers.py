import numpy as np
import pytest

from nnunetv2_crossmatch.preprocessing.outliers import find_outliers, histograms, oddness, reasons_by_case
from nnunetv2_crossmatch.preprocessing.scan import describe

SPACING = (2.0, 1.0, 1.0)


def ct(seed: int) -> np.ndarray:
    """Air, soft tissue and bone in HU."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(m, 30, (4, 16, 16)) for m in (-1000, 40, 60, 800)]).astype(np.float32)


def mr(seed: int, skew: float) -> np.ndarray:
    """Any unit; ``skew`` is what differs between sequences."""
    rng = np.random.default_rng(seed)
    return (rng.uniform(50, 5000) * (0.1 + rng.random((16, 16, 16)) ** skew)).astype(np.float32)


def entries(*scans, spacing=SPACING):
    return {f"s{i}": describe(np.stack(channels), spacing) for i, channels in enumerate(scans)}


def lines(labeled, unlabeled, names):
    return list(find_outliers(labeled, unlabeled, names))


def test_similar_scans_are_not_named():
    labeled = entries(*([ct(i)] for i in range(4)))
    assert lines(labeled, entries(*([ct(i)] for i in range(4, 12))), ["CT"]) == []
    labeled = entries(*([mr(i, 1)] for i in range(4)))
    assert lines(labeled, entries(*([mr(i, 1)] for i in range(4, 12))), ["MRI"]) == []


@pytest.mark.parametrize(
    ("spacing", "figure"), [((2.0, 1.0, 4.0), "(2, 1, 4)"), ((0.002, 0.001, 0.001), "(0.002, 0.001, 0.001)")]
)
def test_another_spacing_is_named_with_figure_and_range(spacing, figure):
    labeled = entries([ct(0)]) | {"z": describe(np.stack([ct(1)]), (2.5, 1.0, 1.0))}
    found = lines(labeled, entries([ct(2)], spacing=spacing), ["CT"])
    assert f"s0: spacing (z, y, x in mm) {figure}; labeled scans have (2, 1, 1) to (2.5, 1, 1)." in found


def test_another_extent_is_named():
    (line,) = lines(entries([ct(0)]), entries([np.tile(ct(1), (1, 1, 3))]), ["CT"])
    assert line == "s0: extent (z, y, x in mm) (32, 16, 48); labeled scans have (32, 16, 16) to (32, 16, 16)."


def test_photographs_have_pixels():
    image = np.random.default_rng(0).random((3, 1, 8, 8))
    small, large = (describe(np.tile(image, times), (999, 1, 1)) for times in ((1, 1), (1, 8)))
    (line,) = lines({"a": small}, {"b": large}, ["R", "G", "B"])
    assert line == "b: size (y, x in pixels) (8, 64); labeled scans have (8, 8) to (8, 8)."


def test_another_unit_of_ct_is_named_and_of_mr_is_none():
    labeled = entries(*([ct(i)] for i in range(3)))
    (line,) = lines(labeled, entries([ct(3) + 1024]), ["CT"])
    assert line.startswith("s0: CT has ") and "percentile 1 of its intensities; labeled scans have -1" in line
    assert lines(entries([mr(0, 1)]), entries([1000 * mr(1, 1)]), ["MRI"]) == []


def test_another_modality_is_named():
    labeled = entries(*([mr(i, 1)] for i in range(3)))
    (line,) = lines(labeled, entries([mr(3, 12)]), ["T1"])
    assert line.startswith("s0: T1 has ")


def test_swapped_channels_are_named():
    labeled = entries(*([mr(i, 0.3), mr(i + 50, 1), mr(i + 90, 4)] for i in range(4)))
    swapped = entries([mr(20, 1), mr(21, 0.3), mr(22, 4)])
    assert lines(labeled, swapped, ["T2", "PD", "FLAIR"]) == ["s0: the channels look like PD, T2, FLAIR in this order."]


def test_a_channel_that_is_zero_everywhere_does_not_disturb():
    labeled = entries(*([mr(i, 1), mr(i, 2)] for i in range(3)))
    assert lines(labeled, entries([mr(5, 1), np.zeros((16, 16, 16), np.float32)]), ["A", "B"]) == []


def test_what_is_named_is_odder_than_one_and_the_rest_is_ranked():
    labeled = entries(*([ct(i)] for i in range(4)))
    unlabeled = entries([ct(5)], [ct(6) + 1024], [ct(7) + 150])
    unlabeled["wide"] = entries([np.tile(ct(8), (1, 1, 3))])["s0"]
    odd = oddness(labeled, unlabeled, ["CT"])
    named = reasons_by_case(labeled, unlabeled, ["CT"])
    assert set(named) == {case for case, value in odd.items() if value > 1} == {"s1", "wide"}
    assert odd["s0"] < odd["s2"] < 1 < odd["s1"]
    assert odd["wide"] == pytest.approx(np.log(3) / np.log(1.5))


def test_histograms_are_shares_of_voxels():
    ((edges, ours, theirs),) = histograms(entries([mr(0, 1)]), entries([mr(1, 1)], [mr(2, 4)]), ["MRI"])
    assert (edges[0], edges[-1]) == (0, 1)
    # uniform but for the jumps at the ends
    np.testing.assert_allclose(ours[1:-1], 0.98 / 40, rtol=0.1)
    assert theirs[:10].sum() > 0.4 > ours[:10].sum()
    assert ours.sum() == pytest.approx(0.98)  # between the outermost percentiles
