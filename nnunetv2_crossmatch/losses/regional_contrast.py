"""Regional contrast: hard voxels toward their class's mean, away from voxels of similar classes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def negative_classes(means: Tensor, present: Tensor, temperature: float) -> Tensor:
    """From which class each class's negatives are drawn: softmax of the cosine between the classes' means.

    Args:
        means: (classes, channels).
        present: bool (classes,); an absent class has probability 0.

    Returns:
        (classes, classes), each row sums to 1 and is 0 on the diagonal; all 1/classes in the row of a class
        with no other class present, whose loss does not count.
    """
    means = F.normalize(means, dim=-1)
    possible = present & ~torch.eye(len(means), dtype=torch.bool, device=means.device)
    similarity = (means @ means.T / temperature).nan_to_num()  # of a step that overflowed, which is skipped
    similarity = similarity.masked_fill(~possible, -torch.inf)
    return torch.where(possible.any(1, keepdim=True), similarity, 0).softmax(1)


def regional_contrast(
    queries: Tensor, hard: Tensor, positives: Tensor, negatives: Tensor, present: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE on the cosine, averaged over the classes (ReCo, arXiv 2104.04465; ACTION, arXiv 2206.02307).

    Args:
        queries: (classes, queries, channels), hard voxels of each class.
        hard: bool (classes,), whether the class has a hard voxel and another class to contrast with; a class
            without contributes 0.
        positives: (classes, channels), the classes' means; get no gradient.
        negatives: (classes, negatives, channels), voxels of other classes; get no gradient. All queries of
            a class share them.
        present: bool (classes,), the classes of the batch, over which the mean is taken.
        temperature: > 0.

    Returns:
        Scalar; 0 with finite gradients when no class has a hard voxel.
    """
    queries = F.normalize(queries, dim=-1) / temperature
    positive = queries @ F.normalize(positives.detach(), dim=-1)[..., None]  # (classes, queries, 1)
    negative = queries @ F.normalize(negatives.detach(), dim=-1).mT  # (classes, queries, negatives)
    loss = torch.cat([positive, negative], 2).logsumexp(2) - positive[..., 0]
    return torch.where(hard, loss.mean(1), 0).sum() / present.sum().clamp(min=1)
