"""What a training records in its fold's folder, beside nnU-Net's files: its method, its cases, its peak memory.

Each is a JSON file; reading one that is not there gives {}, since stock nnU-Net writes none.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.utilities.files import write_json

METHOD = "method.json"
TRAINING = "training.json"
RESOURCES = "resources.json"


def write_method(folder: Path, name: str, constants: dict[str, Any]) -> dict[str, Any]:
    """Record the method's class and its constants; returns what was written."""
    content = {"method": name, **constants}
    write_json(content, folder / METHOD)
    return content


def read_method(folder: Path) -> dict[str, Any]:
    """See :func:`write_method`."""
    return _read(folder / METHOD)


def write_training(
    folder: Path, versions: dict[str, str], labeled: list[str], validation: list[str], unlabeled: dict[str, str]
) -> None:
    """Record the packages' versions, the labeled cases on both sides of the fold, and the unlabeled ones.

    Args:
        unlabeled: {case: SHA-256 of its voxels}.
    """
    content = {"versions": versions, "labeled": labeled, "validation": validation, "unlabeled": unlabeled}
    write_json(content, folder / TRAINING)


def read_training(folder: Path) -> dict[str, Any]:
    """See :func:`write_training`."""
    return _read(folder / TRAINING)


def read_resources(folder: Path) -> dict[str, Any]:
    """See :func:`record_resources`."""
    return _read(folder / RESOURCES)


def record_resources(folder: Path, device: torch.device) -> None:
    """Update ``resources.json``: the peak in bytes of this process so far, on the device's name.

    On a GPU it is what torch's tensors took there, else the process's resident memory. An earlier peak on the same
    device stays if it was higher, so that a continued training keeps it.
    """
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    elif os.name == "nt":
        return  # Windows has no getrusage
    else:
        import resource

        name, peak = device.type, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024  # macOS: bytes, Linux: kB
    before = read_resources(folder)
    if before.get("device") == name:
        peak = max(peak, before["peak_memory_bytes"])
    processes = dist.get_world_size() if dist.is_initialized() else 1
    write_json({"peak_memory_bytes": peak, "device": name, "processes": processes}, folder / RESOURCES)


def _read(file: Path) -> dict[str, Any]:
    return load_json(str(file)) if file.exists() else {}
