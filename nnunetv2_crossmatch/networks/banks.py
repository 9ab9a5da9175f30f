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
        """Add rows (n, channels), under DDP those of all processes.

        One that is not ``usable`` (n,) or not finite repeats the newest entry.
        """
        rows = gather_rows(rows.masked_fill(~usable[:, None], torch.nan))
        rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, self.entries[:1])
        self.entries.copy_(torch.cat([rows.flip(0), self.entries])[: len(self.entries)])
        self.count.add_(len(rows)).clamp_(max=len(self.entries))


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
        """Add rows (classes, n, channels) of the classes that are ``present`` (classes,), of every process.

        One that is not finite repeats its class's newest.
        """
        size = self.entries.shape[1]
        for new, occurs in zip(gather_rows(rows[None]), gather_rows(present[None]), strict=True):
            new = torch.where(new.isfinite().all(2, keepdim=True), new, self.entries[:, :1])
            longer = torch.cat([new, self.entries], 1)[:, :size]
            self.entries.copy_(torch.where(occurs[:, None, None], longer, self.entries))
            self.counts.copy_(torch.where(occurs, self.counts + new.shape[1], self.counts).clamp(max=size))
