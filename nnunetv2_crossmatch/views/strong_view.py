"""Strong views of a batch: intensity only, on the batch's device, drawn first and applied second.

Networks with InstanceNorm, as nnU-Net's, undo what is affine over a patch: of one channel's contrast and brightness
nothing is left after the first layer. So this view has what they cannot undo: a bias field, noise, low resolution,
gamma and blur.
"""

import random
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

_BLUR_RADIUS = 6  # voxels, 3 of the largest sigma
_BIAS_NODES = 4  # per axis: smooth over a quarter of the patch


@dataclass(frozen=True)
class StrongView:
    """Ranges that are drawn from, uniformly, and the share of the samples that each acts on.

    gamma: exponent's logarithm. CrossMatch's ACDC recipe has its stronger half.
    contrast, brightness: factors, drawn where there are several channels.
    bias: logarithm's standard deviation of a smooth field that multiplies the image, as in CrossMatch's LA recipe.
    zoom: resolution that is left of each axis, nnU-Net's way.
    blur: sigma over the finest voxel edge, at most 2; the same in mm along every axis.
    noise: standard deviation over the sample's own.
    """

    gamma: tuple[float, float] = (-0.5, 0.5)
    p_gamma: float = 0.8
    contrast: tuple[float, float] = (0.5, 1.5)
    brightness: tuple[float, float] = (0.5, 1.5)
    p_contrast: float = 0.8
    bias: tuple[float, float] = (0.1, 0.5)
    p_bias: float = 0.5
    zoom: tuple[float, float] = (0.4, 1.0)
    p_zoom: float = 0.3
    blur: tuple[float, float] = (0.1, 2.0)
    p_blur: float = 0.5
    noise: tuple[float, float] = (0.0, 0.4)
    p_noise: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("p_"):
                if not 0 <= value <= 1:
                    raise ValueError(f"{field.name} must be in [0, 1], got {value}")
            elif value[0] > value[1]:
                raise ValueError(f"{field.name} must be (lowest, highest), got {value}")
        if self.blur[1] > _BLUR_RADIUS / 3:
            raise ValueError(f"blur must be at most {_BLUR_RADIUS / 3} voxels, got {self.blur}")


STRONG_VIEW = StrongView()


@dataclass(frozen=True)
class StrongParameters:
    """What was drawn, each (batch, channels) or (batch, 1) and without effect where nothing is done.

    gamma, contrast, brightness: exponent and factors; 1.
    bias: (batch, 1, nodes, ...) logarithm of the field at its nodes; 0.
    zoom: one for all samples of a step; ``zoomed``, bool (batch, 1), has it.
    sigma: of the blur, over the finest voxel edge; 0.
    noise: over the sample's standard deviation; 0.
    """

    gamma: Tensor
    contrast: Tensor
    brightness: Tensor
    bias: Tensor
    zoom: float
    zoomed: Tensor
    sigma: Tensor
    noise: Tensor


def draw_strong(shape: torch.Size, device: torch.device, ranges: StrongView) -> StrongParameters:
    """Independent parameters for each sample of ``shape`` (batch, channels, *spatial)."""
    batch, channels, dimensions = shape[0], shape[1], len(shape) - 2

    def uniform(interval: tuple[float, float], columns: int = 1) -> Tensor:
        return torch.empty(batch, columns, device=device).uniform_(*interval)

    def on(p: float) -> Tensor:
        return torch.rand(batch, 1, device=device) < p

    contrasted = on(ranges.p_contrast if channels > 1 else 0.0)
    nodes = torch.empty(batch, 1, *[_BIAS_NODES] * dimensions, device=device).normal_()
    return StrongParameters(
        gamma=torch.where(on(ranges.p_gamma), uniform(ranges.gamma, channels).exp(), 1.0),
        contrast=torch.where(contrasted, uniform(ranges.contrast, channels), 1.0),
        brightness=torch.where(contrasted, uniform(ranges.brightness, channels), 1.0),
        bias=nodes * _spread(torch.where(on(ranges.p_bias), uniform(ranges.bias), 0.0), nodes),
        zoom=random.uniform(*ranges.zoom),  # on the CPU: it makes a shape
        zoomed=on(ranges.p_zoom),
        sigma=torch.where(on(ranges.p_blur), uniform(ranges.blur), 0.0),
        noise=torch.where(on(ranges.p_noise), uniform(ranges.noise), 0.0),
    )


def apply_strong(image: Tensor, drawn: StrongParameters, voxel: tuple[float, ...]) -> Tensor:
    """A strong view of ``image`` (batch, channels, *spatial); geometry stays as it is.

    Sign-preserving gamma (normalized images are signed), contrast about the mean of the patch, brightness as a
    factor, bias field, low resolution, Gaussian blur, noise.

    Args:
        voxel: see :func:`voxel_edges`.
    """
    image = image.sign() * image.abs().pow(_spread(drawn.gamma, image))
    axes = tuple(range(2, image.ndim))
    mean = image.mean(axes, keepdim=True)
    image = ((image - mean) * _spread(drawn.contrast, image) + mean) * _spread(drawn.brightness, image)
    linear = {2: "bilinear", 3: "trilinear"}[len(axes)]
    image = image * F.interpolate(drawn.bias, image.shape[2:], mode=linear, align_corners=True).exp()
    # an axis whose voxels are longer than the coarse ones keeps its resolution
    small = [
        max(1, round(size * min(1.0, drawn.zoom * edge))) for size, edge in zip(image.shape[2:], voxel, strict=True)
    ]
    coarse = F.interpolate(F.interpolate(image, small, mode="nearest-exact"), image.shape[2:], mode=linear)
    image = torch.where(_spread(drawn.zoomed, image), coarse, image)
    image = gaussian_blur(image, drawn.sigma, voxel)
    deviation = image.std(axes, keepdim=True)
    return image + torch.randn_like(image) * deviation * _spread(drawn.noise, image)


def strong_view(image: Tensor, valid: Tensor, voxel: tuple[float, ...], ranges: StrongView) -> Tensor:
    """A freshly drawn strong view of ``image`` (batch, channels, *spatial).

    Where ``valid``, bool (batch, 1, *spatial), is False (padded, masked out) it stays as it is. ``voxel`` as in
    :func:`voxel_edges`.
    """
    drawn = draw_strong(image.shape, image.device, ranges)
    return torch.where(valid, apply_strong(image, drawn, voxel), image)


def voxel_edges(spacing: tuple[float, ...] | None, patch: tuple[int, ...]) -> tuple[float, ...]:
    """Edges of a voxel over the finest one; infinite along the axis that nnU-Net augments slice by slice.

    Args:
        spacing: mm per voxel along each axis of ``patch``; None: the same along all.
        patch: voxels. A first axis shorter than a third of the longest is nnU-Net's sign of thick slices
            (``ANISO_THRESHOLD``).
    """
    edges = [1.0] * len(patch) if spacing is None else [edge / min(spacing) for edge in spacing]
    if len(patch) == 3 and max(patch) / patch[0] > 3:
        edges[0] = float("inf")
    return tuple(edges)


def gaussian_blur(image: Tensor, sigma: Tensor, voxel: tuple[float, ...]) -> Tensor:
    """Separable Gaussian blur, replicated borders.

    Args:
        image: (batch, channels, *spatial), 2D or 3D.
        sigma: (batch, 1) over the finest voxel edge; 0 leaves a sample unchanged.
        voxel: see :func:`voxel_edges`.
    """
    batch, channels = image.shape[:2]
    convolve = {2: F.conv2d, 3: F.conv3d}[image.ndim - 2]
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=image.device, dtype=image.dtype)
    # samples and channels become groups, so that each keeps its own kernel in one call
    blurred = image.reshape(1, batch * channels, *image.shape[2:])
    for axis in range(2, image.ndim):
        # sigma 0 becomes a delta: every other offset underflows to 0
        kernel = torch.exp(-0.5 * (offsets / (sigma / voxel[axis - 2]).clamp(min=1e-3)) ** 2)  # (batch, kernel)
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
        pads = [0] * (2 * (image.ndim - 2))
        pads[2 * (image.ndim - 1 - axis)] = pads[2 * (image.ndim - 1 - axis) + 1] = _BLUR_RADIUS
        shape = [batch * channels, 1, *[1] * (image.ndim - 2)]
        shape[axis] = kernel.shape[1]
        blurred = convolve(F.pad(blurred, pads, mode="replicate"), kernel.reshape(shape), groups=batch * channels)
    return blurred.reshape(image.shape)


def _spread(values: Tensor, image: Tensor) -> Tensor:
    """(batch, columns) to (batch, columns, 1, ...), as many axes as ``image`` has."""
    return values.reshape(*values.shape, *[1] * (image.ndim - 2))
