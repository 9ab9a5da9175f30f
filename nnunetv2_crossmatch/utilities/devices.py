"""Which device."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def as_device(name: str) -> torch.device:
    """What ``-device`` means on this machine."""
    import torch

    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    print("warning: no GPU was found, so this runs on the CPU: hours where a GPU takes minutes.", file=sys.stderr)
    return torch.device("cpu")
