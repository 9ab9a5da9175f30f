"""Cross entropy against hard labels over the voxels that are kept."""

from torch import Tensor
from torch.nn import functional as F


def masked_cross_entropy(logits: Tensor, label: Tensor, kept: Tensor, counted: Tensor) -> Tensor:
    """Sum over the kept voxels, divided by the number of those counted.

    Args:
        logits: (batch, classes, *spatial).
        label: class index (batch, 1, *spatial), or binary maps of regions (batch, classes, *spatial), each
            with its own binary cross entropy.
        kept: bool (batch, 1 or classes, *spatial); a voxel that is not kept counts nowhere.
        counted: bool, like ``kept``: the kept ones again for their mean, or all that might have been kept, so
            that the loss grows with their share (FixMatch, arXiv 2001.07685).

    Returns:
        Scalar >= 0; 0 with finite gradients when nothing is kept.
    """
    if label.shape == logits.shape:
        loss = F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
    else:
        loss = F.cross_entropy(logits, label[:, 0].long(), reduction="none")[:, None]
    return (loss * kept).sum() / counted.expand_as(loss).sum().clamp(min=1)
