"""A loss on every level of a decoder, weighted as nnU-Net weighs them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def deeply_supervised(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], outputs: Tensor | list[Tensor], label: Tensor, kept: Tensor
) -> Tensor:
    """Weighted sum over the levels: 1, 1/2, 1/4, ... made to sum to 1, and 0 for the coarsest of several.

    Args:
        loss: of float32 logits, label and kept voxels of one level.
        outputs: logits of every level, finest first, or without deep supervision of the finest alone.
        label: (batch, 1 or regions, *spatial) of the finest level; coarser ones take the voxel nearest to
            the center of theirs, as nnU-Net's labels do.
        kept: bool, like ``label``.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs.float(), label, kept)
    weights = [0.5**level for level in range(len(outputs))]
    if len(weights) > 1:
        weights[-1] = 0.0
    losses = [
        weight / sum(weights) * loss(logits.float(), *(_nearest(values, logits.shape[2:]) for values in (label, kept)))
        for weight, logits in zip(weights, outputs, strict=True)
        if weight
    ]
    return torch.stack(losses).sum()


def _nearest(values: Tensor, size: tuple[int, ...]) -> Tensor:
    if values.shape[2:] == size:
        return values
    return F.interpolate(values.float(), size, mode="nearest-exact").to(values.dtype)
