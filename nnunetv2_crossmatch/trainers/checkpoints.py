"""Checkpoint files: nnU-Net's, with what it takes to go on as if the training had never stopped."""

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch

OURS = "nnunetv2_crossmatch"  # our one key in nnU-Net's checkpoint
FORMAT = 1  # of what stands there


class CheckpointError(RuntimeError):
    """A checkpoint that a training cannot go on from; names the file and what to do."""


def complete_checkpoint(file: Path, ours: dict[str, Any], target: Path) -> None:
    """Add our state to a checkpoint that nnU-Net has just written, and put it in its place: whole or not at all.

    Args:
        file: nnU-Net's, beside ``target``; it is gone afterward.
        ours: tensors, numbers, strings and containers of them.
    """
    # weights_only: nnU-Net's own file of a moment ago holds NumPy scalars; what is written here does not any more
    content = torch.load(file, map_location="cpu", weights_only=False)
    with open(file, "wb") as stream:
        torch.save({**plain(content), OURS: {"format": FORMAT, **ours}}, stream)
        stream.flush()
        os.fsync(stream.fileno())  # or after a power failure the name may lead to nothing
    os.replace(file, target)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What :func:`complete_checkpoint` wrote, on the CPU.

    Raises:
        CheckpointError: a truncated or damaged file, or one that this package has not written.
    """
    try:
        content = _load(file)
    except ValueError as e:
        raise CheckpointError(f"{file} {e}. {_alternative(file)}") from None
    if not _is_ours(content):
        raise CheckpointError(
            f"{file} is of another trainer (stock nnU-Net's, say) or of another version of this package. Continue it "
            "with what wrote it, or move it away and train from scratch; -pretrained_weights takes its weights."
        )
    return content


def _load(file: Path) -> Any:
    """Its content, nothing if that is not plain data. Raises ValueError: why there is none."""
    with open(file, "rb") as stream:
        if not is_zipfile(stream):
            raise ValueError("is truncated or no checkpoint")
    try:
        with ZipFile(file) as archive:
            if broken := archive.testzip():  # torch does not ask for the checksums
                raise BadZipFile(broken)
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:  # stock nnU-Net writes NumPy scalars
        return None
    except (OSError, MemoryError):
        raise
    except Exception as e:
        reason = str(e).partition("\n")[0]
        raise ValueError(f"is damaged ({reason})") from None


def _is_ours(content: Any) -> bool:
    ours = content.get(OURS) if isinstance(content, dict) else None
    return isinstance(ours, dict) and ours.get("format") == FORMAT


def _alternative(file: Path) -> str:
    """What --c would take if the file were not there."""
    for name in ("final", "latest", "best"):
        other = file.with_name(f"checkpoint_{name}.pth")
        if other == file or not other.exists():
            continue
        try:
            content = _load(other)
        except ValueError:
            content = None
        if not _is_ours(content):
            return f"Move it away, and {other.name}, which cannot be used either."
        return f"Move it away; --c then goes on from {other.name}, after epoch {content['current_epoch']}."
    return "Move it away and train from scratch; there is no other checkpoint beside it."


def plain(value: Any) -> Any:
    """With Python's numbers instead of NumPy's and names of devices: what every torch reads without running code."""
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if isinstance(value, torch.device):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
