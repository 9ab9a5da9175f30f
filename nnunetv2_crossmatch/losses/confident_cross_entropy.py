"""Cross entropy against a pseudo-label, each image weighted by how much of it is confident."""

from torch import Tensor
from torch.nn import functional as F


def confident_cross_entropy(
    logits: Tensor, label: Tensor, confidence: Tensor, valid: Tensor, *, threshold: float
) -> Tensor:
    """Mean over images of (share of voxels with confidence >= threshold) x (mean cross entropy of all voxels).

    Args:
        logits: (batch, classes, *spatial).
        label: class index (batch, 1, *spatial).
        confidence: of the label, (batch, 1, *spatial).
        valid: bool (batch, 1, *spatial); other voxels count in neither mean.
    """
    loss = F.cross_entropy(logits, label[:, 0].long(), reduction="none").flatten(1)
    counted = valid.flatten(1)
    voxels = counted.sum(1).clamp(min=1)
    share = ((confidence.flatten(1) >= threshold) & counted).sum(1) / voxels
    return (share * (loss * counted).sum(1) / voxels).mean()
