"""Values of all processes together; on one process everything stays as it is."""

import torch
import torch.distributed as dist
from torch import Tensor


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of every process's ``values``; no gradient passes."""
    if _processes() == 1:
        return values.detach()
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all processes in their order, n may differ between them; no gradient passes."""
    rows = rows.detach()
    if _processes() == 1:
        return rows
    own = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.empty_like(own) for _ in range(_processes())]
    dist.all_gather(lengths, own)
    counts = [int(length) for length in lengths]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    everyones = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(everyones, padded)
    return torch.cat([theirs[:count] for theirs, count in zip(everyones, counts, strict=True)])


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """What DistributedDataParallel does, for gradients that did not pass through its forward.

    Every process must hold gradients of the same parameters.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if _processes() == 1 or not gradients:
        return
    flat = torch.cat([g.flatten() for g in gradients]).div_(_processes())
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
