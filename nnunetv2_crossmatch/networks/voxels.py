"""Single voxels of feature maps: drawn by masks, gathered before any projection, summed by class.

A voxel's feature on a coarser level is that of the coarse voxel it lies in (nearest). So a class's sum over
fine voxels is a sum over coarse voxels, weighted by how many of its voxels each holds: exact, and no level
is ever brought to full resolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunetv2_crossmatch.networks.split_unet import Features


def draw_voxels(mask: Tensor, count: int) -> Tensor:
    """``count`` flat indices of True voxels, uniform, with replacement; arbitrary where the mask is empty.

    Stays on the device: no loop, no synchronisation, no list of all True voxels.
    """
    rank = mask.flatten().cumsum(0, dtype=torch.int32)
    # float32 has too few digits for the number of voxels in a batch
    drawn = (torch.rand(count, device=mask.device, dtype=torch.float64) * rank[-1]).int() + 1
    return torch.searchsorted(rank, drawn).clamp(max=len(rank) - 1)


def gather_voxels(levels: Features, index: Tensor) -> Tensor:
    """Features of voxels, all levels side by side.

    Args:
        levels: (batch, channels, *spatial) each, finest first.
        index: flat indices (...) into (batch, *spatial) of the finest level.

    Returns:
        (..., channels of all levels) in float32.
    """
    finest = levels[0].shape[2:]
    place = []
    for size in reversed(finest):
        place.append(index % size)
        index = index // size
    place.reverse()  # index is the sample now
    return torch.cat(
        [
            level.movedim(1, -1)[
                (index, *(p * size // full for p, size, full in zip(place, level.shape[2:], finest, strict=True)))
            ].float()
            for level in levels
        ],
        -1,
    )


@torch.no_grad()
def class_sums(levels: Features, masks: list[Tensor]) -> Tensor:
    """Sums of :func:`gather_voxels` over all voxels of each class, in float32.

    Args:
        levels: (batch, channels, *spatial) each, finest first; every axis a multiple of the next level's.
        masks: per class bool (batch, 1, *spatial) of the finest level.

    Returns:
        (classes, channels of all levels).
    """
    pool: Callable[..., Tensor] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[levels[0].ndim - 2]
    total: list[Tensor | int] = [0] * len(levels)
    for sample in range(len(levels[0])):  # one at a time: mixed precision needs a float32 copy
        held = torch.cat([mask[sample] for mask in masks]).float()  # (classes, *spatial), voxels in each voxel
        for i, level in enumerate(levels):
            finer = held[0].numel()
            held = pool(held, level.shape[2:])
            held = held * (finer // held[0].numel())
            total[i] = total[i] + held.flatten(1) @ level[sample].flatten(1).float().T
    return torch.cat([t for t in total if isinstance(t, Tensor)], 1)
