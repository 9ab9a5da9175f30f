"""Soft Dice of a prediction against a hard pseudo-label, over the voxels that are kept."""

import torch
from torch import Tensor


def masked_dice_loss(
    probabilities: Tensor,
    label: Tensor,
    kept: Tensor,
    *,
    complement: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """Soft Dice loss with squared denominator, sums over the whole batch, averaged over classes.

    D(P, Y) = 1 - (2 sum P Y + eps) / (sum P^2 + sum Y^2 + eps) per class, sums over kept voxels only
    (CrossMatch, arXiv 2405.00354; V-Net, arXiv 1606.04797).

    Args:
        probabilities: (batch, classes, *spatial), softmax or sigmoid.
        label: class index (batch, 1, *spatial), or one-hot / regions (batch, classes, *spatial).
        kept: bool, (batch, 1 or classes, *spatial); a voxel that is not kept counts nowhere.
        complement: what each channel leaves over, 1 - P and 1 - Y, is one more class. Without it a region that the
            label denies has no gradient worth the name; among classes the background is what is left over.
        eps: keeps an empty class defined (its loss is 0 if nothing is predicted either).

    Returns:
        Scalar in [0, 1]; 0 with finite gradients when no voxel is kept.
    """
    target = one_hot(label, probabilities)
    if complement:
        kept = kept.expand_as(probabilities).repeat(1, 2, *[1] * (kept.ndim - 2))
        probabilities, target = (torch.cat((values, 1 - values), 1) for values in (probabilities, target))
    target = target * kept
    kept_probabilities = probabilities * kept
    axes = [0, *range(2, probabilities.ndim)]
    intersection = (kept_probabilities * target).sum(axes)  # (classes,)
    denominator = kept_probabilities.square().sum(axes) + target.sum(axes)
    loss = 1 - (2 * intersection + eps) / (denominator + eps)
    return loss.mean()


def one_hot(label: Tensor, like: Tensor) -> Tensor:
    """Class indices (batch, 1, *spatial) as (batch, classes, *spatial) of ``like``; what has that shape stays."""
    if label.shape == like.shape:
        return label.to(like.dtype)
    return torch.zeros_like(like).scatter_(1, label.long(), 1)
