"""Mean squared difference of two predictions over the voxels that are kept."""

from torch import Tensor


def masked_mse(prediction: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Mean over kept voxels and classes of the squared difference (Mean Teacher, arXiv 1703.01780).

    Args:
        prediction: probabilities (batch, classes, *spatial).
        target: probabilities of the same shape; get no gradient.
        kept: bool (batch, 1 or classes, *spatial).

    Returns:
        Scalar in [0, 1]; 0 with finite gradients when no voxel is kept.
    """
    difference = (prediction - target.detach()).square()
    kept = kept.expand_as(difference)
    return (difference * kept).sum() / kept.sum().clamp(min=1)
