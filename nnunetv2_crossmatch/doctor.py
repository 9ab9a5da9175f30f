"""What is wrong with an installation; works where nnU-Net, or parts of it, cannot be imported."""

import importlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlparse

OLDEST = (2, 8)  # nnU-Net
TRAINER = "nnUNetTrainerCrossMatch"
REGISTRATION = Path("training", "nnUNetTrainer", "nnunetv2_crossmatch_trainers.py")  # in nnU-Net's folder
REINSTALL = "pip install --force-reinstall torch torchvision"  # a pair that fits
UPGRADE = 'pip install --upgrade "nnunetv2>=2.8"'
REGISTER = (
    "mkdir -p ~/nnUNet_trainers && echo 'from nnunetv2_crossmatch.trainers import __getattr__' "
    "> ~/nnUNet_trainers/crossmatch.py && export nnUNet_extTrainer=~/nnUNet_trainers"
)


@dataclass(frozen=True)
class Finding:
    """``fix`` is a line for the shell, None where nothing is wrong."""

    message: str
    fix: str | None = None


def examine() -> Iterator[Finding]:
    """Everything that is known to go wrong, whether or not it does here."""
    yield from _paths()
    yield _augmentation_workers()
    spec = find_spec("nnunetv2")
    if spec is None or spec.origin is None:  # a mere folder, with nothing but our registration in it
        yield Finding(
            "Python does not find nnU-Net's own folder; an editable one wants setuptools' compat mode",
            f"pip install --config-settings editable_mode=compat {_source('nnunetv2')}",
        )
        return
    folder = Path(spec.origin).parent
    found = f"nnU-Net {version('nnunetv2')} in {folder}"
    if tuple(map(int, re.findall(r"\d+", version("nnunetv2"))[:2])) < OLDEST:
        yield Finding(f"{found}, too old", UPGRADE)
    else:
        yield Finding(found)
    yield _torch()
    if "torch" not in sys.modules:  # and nothing of nnU-Net can be imported without it
        return
    yield (timm := _timm())
    yield _trainers(folder, timm)


def _paths() -> Iterator[Finding]:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        another = f"mkdir -p ~/{name} && export {name}=~/{name}"
        if value is None:
            yield Finding(f"{name} is not set", another)
        elif not os.path.exists(value):
            yield Finding(f"{name} is {value}, which does not exist", f"mkdir -p {shlex.quote(value)}")
        elif not os.path.isdir(value):
            yield Finding(f"{name} is {value}, which is not a folder", another)
        elif not os.access(value, os.W_OK) and name != "nnUNet_raw":  # reading the scans is enough
            yield Finding(f"{name} is {value}, where you may not write", another)
        else:
            yield Finding(f"{name} is {value}")


def _augmentation_workers() -> Finding:
    value = os.environ.get("nnUNet_n_proc_DA")
    if value is None or (value.isdecimal() and int(value) > 0):
        return Finding(f"nnUNet_n_proc_DA is {value or 'not set'}")
    return Finding(f"nnUNet_n_proc_DA is {value!r}, with which nnU-Net's planning crashes", "unset nnUNet_n_proc_DA")


def _torch() -> Finding:
    try:
        import torch
    except Exception as e:
        return Finding(f"cannot import torch ({_short(e)})", REINSTALL)
    if torch.cuda.is_available():
        return Finding(f"torch {torch.__version__} on {torch.cuda.get_device_name()}")
    if shutil.which("nvidia-smi") is None:
        return Finding(f"torch {torch.__version__}, no NVIDIA GPU")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # else a build for the CPU, or for a newer driver
    fix = "unset CUDA_VISIBLE_DEVICES" if hidden else REINSTALL
    return Finding(f"torch {torch.__version__} cannot use the GPU that nvidia-smi is for", fix)


def _timm() -> Finding:
    """nnU-Net's Primus trainers import it, and its look-up of trainers imports them."""
    try:
        importlib.import_module("timm")
    except Exception as e:
        return Finding(
            f"cannot import timm, so nnU-Net finds only some trainers ({_short(e)})",
            "pip install timm" if isinstance(e, ModuleNotFoundError) and e.name == "timm" else REINSTALL,
        )
    return Finding(f"timm {version('timm')}")


def _trainers(folder: Path, timm: Finding) -> Finding:
    try:
        from nnunetv2_crossmatch.nnunet.trainer_class import find_trainer_class

        find_trainer_class(TRAINER)
    except Exception as e:
        if not str(e).startswith("Could not find requested nnunet trainer"):
            return Finding(f"nnU-Net cannot look for trainers ({_short(e)})", timm.fix or UPGRADE)
        # pip puts the registration beside this package; nnU-Net may be elsewhere
        elsewhere = Path(str(distribution("nnunetv2_crossmatch").locate_file("nnunetv2"))).resolve() != folder.resolve()
        reinstall = f"pip install --force-reinstall --no-deps {_source('nnunetv2_crossmatch')}"
        return Finding(f"nnU-Net does not find {TRAINER}", REGISTER if elsewhere else reinstall)
    if (folder / REGISTRATION).exists():
        return Finding(f"{TRAINER} through {folder / REGISTRATION}")
    return Finding(f"{TRAINER} through nnUNet_extTrainer={os.environ.get('nnUNet_extTrainer')}")


def _source(package: str) -> str:
    """What pip installed it from, as pip's arguments."""
    origin = json.loads(distribution(package).read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:
        return f"{origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
    if "dir_info" not in origin:
        return origin.get("url", package)
    folder = shlex.quote(unquote(urlparse(origin["url"]).path))
    return f"-e {folder}" if origin["dir_info"].get("editable") else folder


def _short(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
