"""Checkpoint files: nnU-Net's, with what it takes to go on as if the training had never stopped."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch

OURS = "nnunetv2_crossmatch"  # our one key in nnU-Net's checkpoint
FORMAT = 1  # of what stands there


class CheckpointError(RuntimeError):
    """A checkpoint that a training cannot go on from; names the file and what to do."""


def complete_checkpoint(file: Path, ours: dict[str, Any], target: Path) -> None:
    """Add our state to a checkpoint that nnU-Net has just written, and put it in its place: whole or not at all.

    Args:
        file: nnU-Net's, beside ``target``; it is gone afterwards.
        ours: tensors, numbers, strings and containers of them.
    """
    # weights_only: nnU-Net's own file of a moment ago holds NumPy scalars; what is written here does not any more
    content = torch.load(file, map_location="cpu", weights_only=False)
    torch.save({**plain(content), OURS: {"format": FORMAT, **ours}}, file)
    os.replace(file, target)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What :func:`complete_checkpoint` wrote, on the CPU.

    Raises:
        CheckpointError: a truncated or damaged file, or one that this package has not written.
    """
    if not is_zipfile(file):
        raise CheckpointError(f"{file} is truncated or no checkpoint. {_alternative(file)}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # what is not plain data: stock nnU-Net writes NumPy scalars
        content = {}
    except Exception as e:
        raise CheckpointError(f"{file} is damaged ({_first_line(e)}). {_alternative(file)}") from None
    ours = content.get(OURS) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} is of another trainer (stock nnU-Net's, say) or of another version of this package. Continue it "
            "with what wrote it, or move it away and train anew; -pretrained_weights takes its weights."
        )
    return content


def _alternative(file: Path) -> str:
    """The checkpoint to go on from instead, the furthest first."""
    epochs = {}
    for other in file.parent.glob("checkpoint_*.pth"):
        if other != file and is_zipfile(other):
            try:
                epochs[other] = read_checkpoint(other)["current_epoch"]
            except CheckpointError:
                continue
    if not epochs:
        return "Move it away and train anew; there is no other checkpoint beside it."
    best = max(epochs, key=lambda other: epochs[other])
    return f"Move it away; --c then goes on from {best.name}, after epoch {epochs[best]}."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def plain(value: Any) -> Any:
    """With Python's numbers instead of NumPy's, which can be read from a file without running code from it."""
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value
