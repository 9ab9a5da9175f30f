"""First-in-first-out memories. Under DDP every process holds the same entries: those of all processes."""

import torch
from torch import Tensor, nn

from nnunetv2_crossmatch.networks.distributed import gather_rows


class Bank(nn.Module):
    """The last ``size`` rows pushed, newest first.

    Attributes:
        entries: (size, channels).
        count: how many of them are filled.
    """

    entries: Tensor
    count: Tensor

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.register_buffer("entries", torch.zeros(size, channels))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def known(self) -> Tensor:
        """Bool (size,): the filled entries."""
        return torch.arange(len(self.entries), device=self.count.device) < self.count

    @torch.no_grad()
    def push(self, rows: Tensor, usable: Tensor) -> None:
        """Add those rows (n, channels) that are ``usable`` (n,) and finite, under DDP of all processes."""
        rows = gather_rows(rows.masked_fill(~usable[:, None], torch.nan)).flip(0)
        self.entries.copy_(_newest(rows[None], self.entries[None], self.known[None])[0])
        self.count.add_(rows.isfinite().all(1).sum()).clamp_(max=len(self.entries))


class ClassQueue(nn.Module):
    """As many of the last rows for every class, newest first; a class that does not occur keeps its own.

    Attributes:
        entries: (classes, size, channels).
        counts: (classes,), how many of each are filled.
    """

    entries: Tensor
    counts: Tensor

    def __init__(self, classes: int, size: int, channels: int):
        super().__init__()
        self.register_buffer("entries", torch.zeros(classes, size, channels))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.long))

    @property
    def known(self) -> Tensor:
        """Bool (classes, size): the filled entries."""
        return torch.arange(self.entries.shape[1], device=self.counts.device) < self.counts[:, None]

    @torch.no_grad()
    def push(self, rows: Tensor, present: Tensor) -> None:
        """Add finite rows (classes, n, channels) of the classes ``present`` (classes,), under DDP of all processes."""
        for new in gather_rows(rows.masked_fill(~present[:, None, None], torch.nan)[None]):
            self.entries.copy_(_newest(new, self.entries, self.known))
            self.counts.add_(new.isfinite().all(2).sum(1)).clamp_(max=self.entries.shape[1])


def _newest(rows: Tensor, entries: Tensor, known: Tensor) -> Tensor:
    """The finite ``rows`` (memories, n, channels), then the known entries, cut to as many as there are entries.

    A sort instead of a selection: how many rows are finite stays on the device.
    """
    everything = torch.cat([rows, entries], 1)
    holds = torch.cat([rows.isfinite().all(2), known], 1)
    order = (~holds).int().argsort(dim=1, stable=True)[:, : entries.shape[1]]
    return everything.masked_fill(~holds[..., None], 0).gather(1, order[..., None].expand_as(entries))
