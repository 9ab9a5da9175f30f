import matplotlib.image
import numpy as np
import pytest

from nnunetv2_crossmatch.self_training.picture import draw_picture


def colorful(file) -> bool:
    """Whether any pixel is not gray."""
    pixels = matplotlib.image.imread(file)[..., :3]
    return bool((np.ptp(pixels, axis=-1) > 0.3).any())


@pytest.mark.parametrize("shape", [(1, 20, 30), (8, 20, 30), (4, 1, 30)])
def test_contours_and_shading_in_2d_and_3d(tmp_path, shape):
    predicted = np.zeros(shape, int)
    predicted[..., 5:15] = 1
    label = predicted.copy()
    label[..., 10:15] = 3
    image = np.random.default_rng(0).normal(size=shape)
    draw_picture(tmp_path / "case.png", "case", image, label, predicted, 3, [3.0, 1.0, 1.0])
    assert colorful(tmp_path / "case.png")


def test_nothing_found_in_a_constant_image_still_has_a_picture(tmp_path):
    nothing = np.zeros((4, 5, 6))
    draw_picture(tmp_path / "case.png", "case", nothing, nothing.astype(int), nothing.astype(int), 3, [1.0] * 3)
    assert (tmp_path / "case.png").stat().st_size > 1000
