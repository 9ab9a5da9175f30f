from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from nnunetv2_crossmatch.views import strong_view
from nnunetv2_crossmatch.views.strong_view import (
    STRONG_VIEW,
    StrongParameters,
    StrongView,
    apply_strong,
    draw_strong,
    gaussian_blur,
    voxel_edges,
)

CPU = torch.device("cpu")
OFF = StrongView(**{field.name: 0.0 for field in fields(StrongView) if field.name.startswith("p_")})
ISOTROPIC = (1.0, 1.0, 1.0)


def image_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nothing(image: torch.Tensor, **changed) -> StrongParameters:
    """Parameters that leave the image as it is, but for those that are given."""
    torch.manual_seed(0)
    return replace(draw_strong(image.shape, CPU, OFF), **changed)


@pytest.mark.parametrize("spatial", [(20, 22), (14, 16, 18)], ids=["2d", "3d"])
def test_blur_equals_scipy_per_sample_and_axis(spatial):
    image = image_of(3, 2, *spatial).double()
    sigma, voxel = torch.tensor([[0.0], [0.7], [2.0]], dtype=torch.float64), (4.0, 1.0, 1.5)[: len(spatial)]
    blurred = gaussian_blur(image, sigma, voxel)
    assert torch.equal(blurred[0], image[0])
    for sample in (1, 2):
        for channel in range(2):
            expected = gaussian_filter(
                image[sample, channel].numpy(),
                [sigma[sample].item() / edge for edge in voxel],
                mode="nearest",
                radius=strong_view._BLUR_RADIUS,
            )
            np.testing.assert_allclose(blurred[sample, channel].numpy(), expected, atol=1e-10)


def test_the_blur_is_as_long_in_mm_along_every_axis_and_leaves_thick_slices_alone():
    image = image_of(1, 1, 12, 24, 24)
    edges = voxel_edges((3.0, 1.0, 1.0), (12, 24, 24))
    view = apply_strong(image, nothing(image, sigma=torch.tensor([[1.5]])), edges)
    expected = gaussian_filter(image[0, 0].numpy(), (0.5, 1.5, 1.5), mode="nearest", radius=strong_view._BLUR_RADIUS)
    np.testing.assert_allclose(view[0, 0].numpy(), expected, atol=1e-5)

    thick = voxel_edges((10.0, 1.5, 1.5), (6, 24, 24))
    image = image_of(1, 1, 6, 24, 24)
    view = apply_strong(image, nothing(image, sigma=torch.tensor([[1.5]])), thick)
    for mine, plain in zip(view[0, 0], image[0, 0], strict=True):
        expected = gaussian_filter(plain.numpy(), 1.5, mode="nearest", radius=strong_view._BLUR_RADIUS)
        np.testing.assert_allclose(mine.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("patch", [(16, 64, 64), (24, 64, 64), (64, 20, 64), (20, 128, 64)], ids=str)
def test_the_axis_left_alone_is_the_one_that_nnunet_augments_slice_by_slice(make_trainer, patch):
    def shaped(plans, dataset_json):
        plans["configurations"]["3d_fullres"]["patch_size"] = list(patch)

    trainer = make_trainer("nnUNetTrainer", edit=shaped)
    dummy_2d = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]
    assert [edge == float("inf") for edge in voxel_edges((1.0, 1.0, 1.0), patch)] == [dummy_2d, False, False]


def test_gamma_then_contrast_then_brightness_of_each_channel():
    image = image_of(2, 2, 5, 6)
    gamma, contrast, brightness = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(1)) + 0.5
    view = apply_strong(
        image, nothing(image, gamma=gamma, contrast=contrast, brightness=brightness), voxel_edges(None, (5, 6))
    )
    for b, c in np.ndindex(2, 2):
        x = image[b, c].numpy()
        x = np.sign(x) * np.abs(x) ** gamma[b, c].item()
        x = ((x - x.mean()) * contrast[b, c].item() + x.mean()) * brightness[b, c].item()
        np.testing.assert_allclose(view[b, c].numpy(), x, rtol=1e-4, atol=1e-5)


def test_a_bias_field_is_smooth_and_multiplies():
    image = torch.ones(1, 1, 17, 17)
    bias = torch.zeros(1, 1, 4, 4)
    bias[..., 0, 0] = 0.7
    field = apply_strong(image, nothing(image, bias=bias), (1.0, 1.0))[0, 0]
    assert field[0, 0].item() == pytest.approx(np.exp(0.7), rel=1e-5) and field[16, 16].item() == pytest.approx(1.0)
    assert field[:, 0].diff().abs().max() < 0.25
    assert torch.equal(2 * field, apply_strong(2 * image, nothing(image, bias=bias), (1.0, 1.0))[0, 0])


def test_low_resolution_averages_nothing_but_takes_every_second_voxel_of_the_fine_axes():
    image = image_of(2, 1, 4, 16, 16)
    drawn = nothing(image, zoom=0.5, zoomed=torch.tensor([[True], [False]]))
    view = apply_strong(image, drawn, (3.0, 1.0, 1.0))
    assert torch.allclose(view[1], image[1], atol=1e-6)
    coarse = torch.nn.functional.interpolate(image[:1], (4, 8, 8), mode="nearest-exact")
    assert torch.allclose(view[:1], torch.nn.functional.interpolate(coarse, (4, 16, 16), mode="trilinear"), atol=1e-5)


def test_noise_is_a_share_of_the_samples_own_deviation():
    image = 5 * image_of(1, 1, 64, 64)
    added = apply_strong(image, nothing(image, noise=torch.tensor([[0.4]])), (1.0, 1.0)) - image
    assert added.std().item() == pytest.approx(0.4 * image.std().item(), rel=0.05)


def test_parameters_stay_in_their_ranges_and_differ_by_sample_and_channel():
    torch.manual_seed(0)
    drawn = draw_strong(torch.Size((4000, 2, 8, 8)), CPU, STRONG_VIEW)
    gamma, contrast = (drawn.gamma != 1).any(1), (drawn.contrast != 1).any(1)
    shares = {
        "gamma": (gamma, 0.8),
        "contrast": (contrast, 0.8),
        "blur": (drawn.sigma[:, 0] > 0, 0.5),
        "noise": (drawn.noise[:, 0] > 0, 0.5),
        "bias": ((drawn.bias != 0).flatten(1).any(1), 0.5),
        "zoom": (drawn.zoomed[:, 0], 0.3),
    }
    for name, (touched, p) in shares.items():
        assert touched.float().mean().item() == pytest.approx(p, abs=0.03), name
    for values, low, high in (
        (drawn.gamma[gamma].log(), -0.5, 0.5),
        (drawn.contrast[contrast], 0.5, 1.5),
        (drawn.brightness[contrast], 0.5, 1.5),
    ):
        assert low - 1e-6 <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-6
        assert (values[:, 0] != values[:, 1]).all()
    assert 1.9 < drawn.sigma.max() <= 2.0 and 0.39 < drawn.noise.max() <= 0.4
    assert (drawn.contrast[~contrast] == 1).all() and (drawn.brightness[~contrast] == 1).all()
    field = drawn.bias[shares["bias"][0]].flatten(1).std(1)
    assert field.mean().item() == pytest.approx(0.3, abs=0.03)


def test_one_channel_has_no_contrast_which_its_first_normalization_would_undo():
    drawn = draw_strong(torch.Size((50, 1, 8, 8)), CPU, STRONG_VIEW)
    assert (drawn.contrast == 1).all() and (drawn.brightness == 1).all()


def test_a_network_with_instance_norm_sees_every_part_of_the_view():
    norm = torch.nn.InstanceNorm2d(1)
    image = image_of(1, 1, 32, 32)
    for part in ("gamma", "bias", "zoom", "blur", "noise"):
        torch.manual_seed(1)
        only = replace(OFF, **{f"p_{part}": 1.0})
        view = strong_view.strong_view(image, torch.ones_like(image, dtype=torch.bool), (1.0, 1.0), only)
        assert (norm(view) - norm(image)).norm() > 0.05 * norm(image).norm(), part


def test_an_untouched_sample_and_voxels_outside_the_scan_stay_as_they_are():
    image = image_of(1, 3, 4, 5, 6)
    assert torch.allclose(apply_strong(image, nothing(image), ISOTROPIC), image, atol=1e-6)
    valid = torch.rand(1, 1, 4, 5, 6) > 0.5
    view = strong_view.strong_view(image, valid, ISOTROPIC, STRONG_VIEW)
    outside = ~valid.expand_as(image)
    assert torch.equal(view[outside], image[outside]) and not torch.equal(view, image)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"p_bias": 1.5}, "p_bias must be in"), ({"zoom": (1.0, 0.4)}, "zoom"), ({"blur": (0.1, 5.0)}, "at most 2")],
)
def test_ranges_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        StrongView(**changed)
