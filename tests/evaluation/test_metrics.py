import numpy as np
import pytest
from medpy.metric import binary
from scipy import ndimage

from nnunetv2_crossmatch.evaluation.metrics import asd, dice, hd95, jaccard, surface, surface_distances


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two overlapping ragged masks, 2D or 3D, that often touch the border, and an anisotropic spacing."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 18, size=2 + seed % 2)
    blobs = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0.4, *[1.0] * len(shape)))
    masks = blobs > np.quantile(blobs, rng.uniform(0.2, 0.9), axis=tuple(range(1, blobs.ndim)), keepdims=True)
    return masks[0], masks[1], rng.uniform(0.3, 10, size=len(shape))


@pytest.mark.parametrize("seed", range(200))
def test_the_numbers_are_medpys(seed):
    prediction, reference, spacing = random_pair(seed)
    assert dice(prediction, reference) == binary.dc(prediction, reference)
    assert jaccard(prediction, reference) == binary.jc(prediction, reference)
    surfaces = surface(prediction), surface(reference)
    there, back = surface_distances(*surfaces)
    assert hd95(there, back) == binary.hd95(prediction, reference)
    assert asd(there) == binary.asd(prediction, reference)
    there, back = surface_distances(*surfaces, spacing)
    assert hd95(there, back) == pytest.approx(binary.hd95(prediction, reference, spacing), rel=1e-12)
    assert asd(there) == pytest.approx(binary.asd(prediction, reference, spacing), rel=1e-12)


def test_the_random_pairs_reach_the_border_and_overlap_in_part():
    pairs = [random_pair(seed)[:2] for seed in range(200)]
    touching = [any(np.take(mask, (0, -1), axis).any() for axis in range(mask.ndim)) for mask, _ in pairs]
    assert sum(touching) > 20
    assert sum(0 < dice(*pair) < 1 for pair in pairs) > 150
    assert {mask.ndim for mask, _ in pairs} == {2, 3}


def test_asd_is_directed_and_hd95_is_not():
    small, large = np.zeros((2, 20, 20), dtype=bool)
    small[9:11, 9:11] = large[2:18, 2:18] = True
    there, back = surface_distances(surface(small), surface(large))
    assert asd(there) == binary.asd(small, large) != binary.asd(large, small) == asd(back)
    assert hd95(there, back) == hd95(back, there)


def test_empty_masks_have_no_overlap_and_no_surface():
    empty, full = np.zeros((3, 3), dtype=bool), np.ones((3, 3), dtype=bool)
    assert np.isnan([dice(empty, empty), jaccard(empty, empty)]).all()
    assert dice(empty, full) == jaccard(full, empty) == 0
    with pytest.raises(ValueError, match="empty mask"):
        surface(empty)
