import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunetv2_crossmatch.views import strong_view
from nnunetv2_crossmatch.views.strong_view import StrongParameters, apply_strong, draw_strong, gaussian_blur

CPU = torch.device("cpu")


@pytest.mark.parametrize("spatial", [(20, 22), (14, 16, 18)], ids=["2d", "3d"])
def test_blur_equals_scipy_per_sample(spatial):
    image = torch.randn(3, 2, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([[0.0], [0.7], [2.0]], dtype=torch.float64)
    blurred = gaussian_blur(image, sigma)
    assert torch.equal(blurred[0], image[0])
    for sample, s in ((1, 0.7), (2, 2.0)):
        for channel in range(2):
            expected = gaussian_filter(
                image[sample, channel].numpy(), s, mode="nearest", radius=strong_view._BLUR_RADIUS
            )
            np.testing.assert_allclose(blurred[sample, channel].numpy(), expected, atol=1e-10)


def test_strong_view_is_gamma_then_contrast_then_brightness():
    image = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    gamma, contrast, brightness = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    view = apply_strong(image, StrongParameters(gamma, contrast, brightness, torch.zeros(2, 1)))
    for b, c in np.ndindex(2, 2):
        x = image[b, c].numpy()
        x = np.sign(x) * np.abs(x) ** gamma[b, c].item()
        x = ((x - x.mean()) * contrast[b, c].item() + x.mean()) * brightness[b, c].item()
        np.testing.assert_allclose(view[b, c].numpy(), x, rtol=1e-4, atol=1e-5)


def test_parameters_stay_in_their_ranges_and_differ_by_sample_and_channel():
    torch.manual_seed(0)
    drawn = draw_strong(4000, 2, CPU)
    changed = (drawn.gamma != 1).any(1)
    assert changed.float().mean().item() == pytest.approx(strong_view.P_INTENSITY, abs=0.03)
    assert (drawn.sigma > 0).float().mean().item() == pytest.approx(strong_view.P_BLUR, abs=0.03)
    for values, (low, high) in (
        (drawn.gamma.log(), strong_view.LOG_GAMMA),
        (drawn.contrast, strong_view.CONTRAST),
        (drawn.brightness, strong_view.BRIGHTNESS),
    ):
        touched = values[changed]
        assert touched.min() >= low - 1e-6 and touched.max() <= high + 1e-6
        assert (touched[:, 0] != touched[:, 1]).all()
    assert (drawn.contrast[~changed] == 1).all() and (drawn.brightness[~changed] == 1).all()
    assert drawn.sigma.max() <= strong_view.BLUR_SIGMA[1]


def test_an_untouched_sample_comes_back_unchanged():
    image = torch.randn(1, 3, 4, 5, 6)
    one = torch.ones(1, 3)
    assert torch.allclose(apply_strong(image, StrongParameters(one, one, one, torch.zeros(1, 1))), image, atol=1e-6)
