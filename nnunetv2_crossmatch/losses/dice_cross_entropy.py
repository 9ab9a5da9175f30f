"""nnU-Net's Dice + cross entropy, with a weight for each voxel."""

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5  # nnU-Net's, in its trainer's _build_loss


def dice_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, *, batch_dice: bool) -> Tensor:
    """What nnU-Net's DC_and_CE_loss and, of regions, DC_and_BCE_loss give where every weight is 1.

    The cross entropy is the weighted sum over the number of all voxels that are not ignored, so that it grows with
    the share of those that count.

    Args:
        logits: (batch, classes, *spatial), float32.
        label: class index (batch, 1, *spatial), or binary maps of regions (batch, classes, *spatial).
        weight: (batch, 1 or classes, *spatial) in [0, 1]; a voxel with 0 teaches nothing, one below 0 is ignored as
            with nnU-Net's ignore label.
        batch_dice: nnU-Net's, from the plans: Dice of all samples together, not the mean of each one's.

    Returns:
        Scalar in [-1, inf); without the background's Dice, as nnU-Net has it for classes.
    """
    counted = (weight >= 0).expand(-1, logits.shape[1] if label.shape == logits.shape else 1, *logits.shape[2:]).sum()
    weight = weight.to(logits.dtype).clamp(min=0)
    if label.shape == logits.shape:
        target, first = label.bool(), 0
        entropy = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
        p = logits.sigmoid() * weight
    else:
        target, first = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, label.long(), True), 1
        entropy = F.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]
        p = logits.softmax(1) * weight
    axes = [*([0] if batch_dice else []), *range(2, logits.ndim)]
    overlap = torch.where(target, p, 0).sum(axes)
    size = p.sum(axes) + torch.where(target, weight, 0).sum(axes)
    dice = (2 * overlap + SMOOTH) / (size + SMOOTH).clamp(min=1e-8)
    return (entropy * weight).sum() / counted.clamp(min=1) - dice[..., first:].mean()
