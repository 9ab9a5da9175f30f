"""A student learns which of a bank's entries its teacher finds similar."""

from torch import Tensor
from torch.nn import functional as F

UNKNOWN = -1e4  # exp() of it is 0 beside any cosine over a temperature; finite, so an empty bank gives 0 and not nan


def similarity_distillation(
    student: Tensor,
    teacher: Tensor,
    entries: Tensor,
    known: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """KL(p_t || p_s) with p(j) = softmax_j(cos(z, entry_j) / temperature) (ISD, arXiv 2012.09259; ACTION, 2206.02307).

    Unlike there, the cosine is that of the directions seen from the mean of the known entries. nnU-Net's
    InstanceNorm gives a channel nearly the same mean in every image, so seen from the origin all pooled
    embeddings point nearly one way (cosines above 0.97 before training), and there is hardly a gradient. What it
    is worth was measured, see scripts/README.md.

    Args:
        student: (rows, channels).
        teacher: (rows, channels); gets no gradient.
        entries: (size, channels); get no gradient.
        known: bool (size,); an entry that is not known has probability 0.

    Returns:
        (rows,); 0 with zero gradients while nothing is known.
    """
    entries = entries.detach()
    center = (entries * known[:, None]).sum(0) / known.sum().clamp(min=1)
    directions = F.normalize(entries - center, dim=-1)

    def log_probabilities(z: Tensor, temperature: float) -> Tensor:
        cosine = F.normalize(z - center, dim=-1) @ directions.T
        return (cosine / temperature).masked_fill(~known, UNKNOWN).log_softmax(-1)

    target = log_probabilities(teacher.detach(), teacher_temperature)
    return (target.exp() * (target - log_probabilities(student, student_temperature))).sum(-1)
