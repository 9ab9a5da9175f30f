"""nnU-Net's Dice + cross entropy, with a weight for each voxel."""

from torch import Tensor
from torch.nn import functional as F

from nnunetv2_crossmatch.losses.masked_dice import one_hot

SMOOTH = 1e-5  # nnU-Net's, in its trainer's _build_loss


def dice_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, *, batch_dice: bool) -> Tensor:
    """What nnU-Net's DC_and_CE_loss and, of regions, DC_and_BCE_loss give where every weight is 1.

    The cross entropy is the weighted sum over the number of all voxels, so that it grows with their share; nnU-Net's
    ignore label divides by those that are left.

    Args:
        logits: (batch, classes, *spatial), float32.
        label: class index (batch, 1, *spatial), or binary maps of regions (batch, classes, *spatial).
        weight: (batch, 1 or classes, *spatial) in [0, 1]; a voxel with 0 counts nowhere.
        batch_dice: nnU-Net's, from the plans: Dice of all samples together, not the mean of each one's.

    Returns:
        Scalar in [-1, inf); without the background's Dice, as nnU-Net has it for classes.
    """
    weight = weight.to(logits.dtype)
    if label.shape == logits.shape:
        target, first = label.to(logits.dtype), 0
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        p = logits.sigmoid() * weight
    else:
        target, first = one_hot(label, logits), 1
        entropy = F.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]
        p = logits.softmax(1) * weight
    axes = [*([0] if batch_dice else []), *range(2, logits.ndim)]
    overlap = (p * target).sum(axes)
    size = (p + target * weight).sum(axes)
    dice = (2 * overlap + SMOOTH) / (size + SMOOTH).clamp(min=1e-8)
    return (entropy * weight).sum() / entropy.numel() - dice[..., first:].mean()
