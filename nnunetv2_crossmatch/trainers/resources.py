"""What a training takes: its peak memory, beside its checkpoints."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.utilities.files import write_json

RESOURCES = "resources.json"  # in the fold's folder


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
    file = folder / RESOURCES
    before = load_json(str(file)) if file.exists() else {}
    if before.get("device") == name:
        peak = max(peak, before["peak_memory_bytes"])
    processes = dist.get_world_size() if dist.is_initialized() else 1
    write_json({"peak_memory_bytes": peak, "device": name, "processes": processes}, file)
