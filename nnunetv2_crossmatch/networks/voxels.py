"""Single voxels of feature maps: drawn by masks, gathered before any projection, summed by class.

A voxel's feature on a coarser level is that of the coarse voxel it lies in (nearest). So a class's sum over
fine voxels is a sum over coarse voxels, weighted by how many of its voxels each holds: exact, and no level
is ever brought to full resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nnunetv2_crossmatch.networks.split_unet import Features


def draw_voxels(mask: Tensor, count: int) -> Tensor:
    """``count`` flat indices of True voxels, uniform, with replacement; arbitrary where the mask is empty.

    Stays on the device: no loop, no synchronization, no list of all True voxels.
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


@dataclass(frozen=True)
class Voxels:
    """What a contrast needs of one graph; draws are uniform with replacement.

    any, hard: (classes, draws, channels), features of valid voxels of each class without gradient, of hard
        ones with gradient; arbitrary where a class has none.
    counts, hard_counts: (classes,), how many of them there are.
    sums: (classes, channels), of the features of all valid voxels, without gradient.
    """

    any: Tensor
    hard: Tensor
    counts: Tensor
    hard_counts: Tensor
    sums: Tensor


def draw_classes(levels: Features, masks: list[Tensor], hard: list[Tensor], count: int, hard_count: int) -> Voxels:
    """Draw from one graph.

    Args:
        levels: (batch, channels, *spatial) each, finest first.
        masks, hard: per class bool (batch, 1, *spatial), its valid voxels and the hard ones among them.
        count, hard_count: draws of each class.
    """
    with torch.no_grad():
        some = gather_voxels(levels, torch.stack([draw_voxels(mask, count) for mask in masks]))
    return Voxels(
        any=some,
        hard=gather_voxels(levels, torch.stack([draw_voxels(mask, hard_count) for mask in hard])),
        counts=torch.stack([mask.sum() for mask in masks]),
        hard_counts=torch.stack([mask.sum() for mask in hard]),
        sums=class_sums(levels, masks),
    )


def of_union(first: Tensor, first_size: Tensor, second: Tensor, second_size: Tensor) -> Tensor:
    """Uniform draws from two sets become uniform draws from their union.

    Args:
        first, second: (classes, draws, channels).
        first_size, second_size: (classes,), of the sets drawn from.
    """
    share = first_size / (first_size + second_size).clamp(min=1)
    chosen = torch.rand(first.shape[:2], device=first.device) < share[:, None]
    return torch.where(chosen[..., None], first, second)
