"""Which device."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def as_device(name: str) -> torch.device:
    """What ``-device`` means on this machine."""
    import torch

    if name == "auto" and (name := best_device()) == "cpu":
        print("warning: no GPU was found, so this runs on the CPU: hours where a GPU takes minutes.", file=sys.stderr)
    return torch.device(name)


def device_option(device: str | None = None) -> str:
    """What nnU-Net's commands need to run on a device, by default this machine's best: they take CUDA for granted."""
    device = device or best_device()
    return "" if device == "cuda" else f" -device {device}"


def best_device() -> str:
    """CUDA, or else Apple's MPS, or else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
