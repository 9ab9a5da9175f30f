"""A teacher whose weights are an exponential moving average of the student's (arXiv 1703.01780)."""

from copy import deepcopy

import torch
from torch import nn


class EMATeacher(nn.Module):
    """Copy of a network that follows it and never gets a gradient.

    Args:
        student: copied; the copy keeps no link to it.
    """

    updates: torch.Tensor

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = deepcopy(student).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """teacher = decay * teacher + (1 - decay) * student; buffers are copied.

        The decay is at most 1 - 1/(updates + 1), so the first update copies the student and the random
        initialization is forgotten at once.

        Args:
            decay: in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        now = (1 - 1 / (self.updates + 1)).clamp(max=decay)
        self.updates += 1
        # not state_dict(): nnU-Net's blocks list one and the same tensor there under several names
        mine: list[torch.Tensor] = list(self.network.parameters())
        theirs: list[torch.Tensor] = list(student.parameters())
        now = now.to(mine[0].dtype)
        torch._foreach_mul_(mine, now)  # all at once: a kernel each would take as long as a small network's step
        torch._foreach_add_(mine, list(torch._foreach_mul(theirs, 1 - now)))
        for buffer, students in zip(self.network.buffers(), student.buffers(), strict=True):
            buffer.copy_(students)
