"""Strong views of a batch: intensity only, on the batch's device, drawn first and applied second."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

P_INTENSITY = 0.8  # one recipe for MR, CT and RGB: the stronger half of CrossMatch's LA and ACDC recipes
P_BLUR = 0.5
LOG_GAMMA = (-0.5, 0.5)
CONTRAST = BRIGHTNESS = (0.5, 1.5)
BLUR_SIGMA = (0.1, 2.0)  # voxels
_BLUR_RADIUS = 6  # 3 of the largest sigma


@dataclass(frozen=True)
class StrongParameters:
    """Each (batch, channels); ``sigma`` is (batch, 1) and 0 where nothing is blurred."""

    gamma: Tensor
    contrast: Tensor
    brightness: Tensor
    sigma: Tensor


def draw_strong(batch: int, channels: int, device: torch.device) -> StrongParameters:
    """Independent parameters per sample; gamma, contrast and brightness per channel too."""

    def uniform(low: float, high: float, columns: int) -> Tensor:
        return torch.empty(batch, columns, device=device).uniform_(low, high)

    def on(p: float) -> Tensor:
        return torch.rand(batch, 1, device=device) < p

    intensity = on(P_INTENSITY)
    one = torch.ones((), device=device)
    return StrongParameters(
        gamma=torch.where(intensity, uniform(*LOG_GAMMA, channels).exp(), one),
        contrast=torch.where(intensity, uniform(*CONTRAST, channels), one),
        brightness=torch.where(intensity, uniform(*BRIGHTNESS, channels), one),
        sigma=torch.where(on(P_BLUR), uniform(*BLUR_SIGMA, 1), 0 * one),
    )


def apply_strong(image: Tensor, parameters: StrongParameters) -> Tensor:
    """A strong view of ``image`` (batch, channels, *spatial); geometry stays as it is.

    Sign-preserving gamma (normalized images are signed), contrast about the mean of the patch,
    brightness as a factor, then Gaussian blur.
    """
    spatial = [1] * (image.ndim - 2)
    gamma, contrast, brightness = (
        p.reshape(*p.shape, *spatial) for p in (parameters.gamma, parameters.contrast, parameters.brightness)
    )
    image = image.sign() * image.abs().pow(gamma)
    mean = image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)
    image = ((image - mean) * contrast + mean) * brightness
    return gaussian_blur(image, parameters.sigma)


def strong_view(image: Tensor, valid: Tensor) -> Tensor:
    """A freshly drawn strong view of ``image`` (batch, channels, *spatial).

    Where ``valid``, bool (batch, 1, *spatial), is False (padded, masked out) it stays as it is.
    """
    drawn = draw_strong(image.shape[0], image.shape[1], image.device)
    return torch.where(valid, apply_strong(image, drawn), image)


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur, replicated borders.

    Args:
        image: (batch, channels, *spatial), 2D or 3D.
        sigma: (batch, 1) in voxels; 0 leaves a sample unchanged.
    """
    batch, channels = image.shape[:2]
    convolve = {2: F.conv2d, 3: F.conv3d}[image.ndim - 2]
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=image.device, dtype=image.dtype)
    # sigma 0 becomes a delta: every other offset underflows to 0
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)) ** 2)  # (batch, kernel)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # samples and channels become groups, so that each keeps its own kernel in one call
    blurred = image.reshape(1, batch * channels, *image.shape[2:])
    for axis in range(2, image.ndim):
        pads = [0] * (2 * (image.ndim - 2))
        pads[2 * (image.ndim - 1 - axis)] = pads[2 * (image.ndim - 1 - axis) + 1] = _BLUR_RADIUS
        shape = [batch * channels, 1, *[1] * (image.ndim - 2)]
        shape[axis] = kernel.shape[1]
        blurred = convolve(F.pad(blurred, pads, mode="replicate"), kernel.reshape(shape), groups=batch * channels)
    return blurred.reshape(image.shape)
