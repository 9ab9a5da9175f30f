"""Adaptive anatomical contrast: labeled voxels toward their class's own corner of the sphere (ACTION++)."""

from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nnunetv2_crossmatch.losses.similarity_distillation import UNKNOWN


def simplex_centers(classes: int, channels: int) -> Tensor:
    """(classes, channels) unit vectors as far apart as can be: every cosine is -1 / (classes - 1).

    Raises:
        ValueError: fewer than two classes, or more classes than channels.
    """
    if not 2 <= classes <= channels:
        raise ValueError(f"the simplex needs from 2 to {channels} classes (the channels), got {classes}")
    return F.pad(F.normalize(torch.eye(classes) - 1 / classes, dim=1), (0, channels - classes))


def assign_centers(means: Tensor, centers: Tensor) -> Tensor:
    """The center of each class, (classes,): Hungarian assignment that maximizes the sum of cosines.

    Args:
        means: (classes, channels), running means of the classes; 0 for one not seen yet.
        centers: (classes, channels).
    """
    cosine = (F.normalize(means, dim=1) @ centers.T).nan_to_num()
    _, assigned = linear_sum_assignment(cosine.cpu().numpy(), maximize=True)
    return torch.as_tensor(assigned, device=means.device)


def adaptive_contrast(
    queries: Tensor,
    present: Tensor,
    entries: Tensor,
    known: Tensor,
    centers: Tensor,
    *,
    temperature: float,
    center_weight: float,
) -> Tensor:
    """Supervised contrast over a class-labeled queue and class centers, in one softmax (arXiv 2304.02689).

    Per query: -mean over its class's entries p of log(exp(cos(q, p)/t) / S) - ``center_weight`` log(exp(cos(q, own
    center)/t) / S), where S is the sum over all entries and all centers a of exp(cos(q, a)/t).

    Unlike there, the entries' term is a mean, so that its size is not the queue's: the paper writes a sum over them,
    and its code divides both terms by the number of entries, which are thousands. The code has one positive more, what
    the teacher makes of the query's own voxel.

    Args:
        queries: (classes, queries, channels), labeled voxels of each class.
        present: bool (classes,); a class that is not contributes 0.
        entries: (classes, size, channels), the queue; gets no gradient.
        known: bool (classes, size), its filled entries. While a class has none its first term is 0.
        centers: (classes, channels), each class's own; get no gradient.
        temperature: > 0.

    Returns:
        Scalar, the mean over the queries of each class, then over the classes present.
    """
    queries = F.normalize(queries, dim=-1) / temperature
    entries = F.normalize(entries.detach(), dim=-1)
    centers = centers.detach()
    everything = torch.cat([entries.flatten(0, 1), centers])
    bias = torch.zeros_like(known, dtype=queries.dtype).masked_fill(~known, UNKNOWN).flatten()
    bias = F.pad(bias, (0, len(centers)))
    # a class at a time, and once more in backward: its logits are as many as its queries times the whole queue
    again = partial(checkpoint, _log_sum, use_reentrant=False, preserve_rng_state=False)
    total = torch.stack([again(q, everything, bias) for q in queries])
    # the mean of the positives' logits is the logit of their mean
    filled = known.sum(1)
    means = (entries * known[..., None]).sum(1) / filled[:, None].clamp(min=1)
    positive = (queries * means[:, None]).sum(2)
    supervised = torch.where(filled > 0, (total - positive).mean(1), 0)

    center = (total - (queries * centers[:, None]).sum(2)).mean(1)
    return torch.where(present, supervised + center_weight * center, 0).sum() / present.sum().clamp(min=1)


def _log_sum(queries: Tensor, entries: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias, queries, entries.T).logsumexp(1)
