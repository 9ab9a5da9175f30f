"""One unlabelled scan: checked, then through nnU-Net's own preprocessor."""

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.preprocessing.manifest import ARRAY_SUFFIXES, source_stamp

INCOMING = ".incoming_"  # prefix of the folders in which cases are written before they are moved into place
_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class BadScan(ValueError):
    """One scan that cannot be used; the message names it, the reason and the fix."""


class _Unchanged(Exception):
    """Voxels and spacing are those that were preprocessed already."""


def preprocess_scan(
    case: str,
    files: list[Path],
    folder: Path,
    plans_json: dict,
    configuration_name: str,
    dataset_json: dict,
    known_sha256: str | None,
) -> dict:
    """Preprocess one case into ``folder``, whole or not at all.

    Args:
        known_sha256: of the voxels and spacing whose arrays are in the folder; with the same nothing is written.

    Returns:
        The manifest's entry of the case.

    Raises:
        BadScan: unreadable, truncated, NaN, infinite, constant, wrong number of channels.
        OSError: the output cannot be written.
    """
    plans = PlansManager(plans_json)
    configuration = plans.get_configuration(configuration_name)
    named = ", ".join(map(str, files))
    sha256 = ""

    class CheckingPreprocessor(configuration.preprocessor_class):  # type: ignore[name-defined]
        def run_case_npy(self, data, seg, properties, *args, **kwargs):
            nonlocal sha256
            _check_voxels(data, dataset_json, named)
            geometry = repr((data.shape, data.dtype.str, [float(s) for s in properties["spacing"]]))
            sha256 = hashlib.sha256(geometry.encode() + np.ascontiguousarray(data).tobytes()).hexdigest()
            if sha256 == known_sha256:
                raise _Unchanged
            return super().run_case_npy(data, seg, properties, *args, **kwargs)

    source = source_stamp(files)
    incoming = Path(tempfile.mkdtemp(prefix=INCOMING, dir=folder))
    try:
        for file in files:
            if file.name.endswith((".nii", ".nii.gz")):
                _check_nifti(file)
        CheckingPreprocessor(verbose=False).run_case_save(
            str(incoming / case), [str(f) for f in files], None, plans, configuration, dataset_json
        )
        for suffix in ARRAY_SUFFIXES:
            os.replace(incoming / (case + suffix), folder / (case + suffix))
    except _Unchanged:
        pass
    except (BadScan, MemoryError):
        raise
    except Exception as e:
        # a compressor reports a full disk in words of its own
        if getattr(e, "errno", None) in _DISK_FULL or shutil.disk_usage(folder).free < 1 << 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from e
        if sha256 and isinstance(e, OSError):  # read and checked: the output is the trouble
            raise
        raise BadScan(f"{named} cannot be {'preprocessed' if sha256 else 'read'} ({_short(e)}). {_REPLACE}") from e
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return {"source": source, "sha256": sha256}


_REPLACE = "Replace the file or remove the case."


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[-300:]


def _check_nifti(file: Path) -> None:
    """SimpleITK fills up a truncated NIfTI file and turns NaN into 0 without a word, so look at it raw."""
    try:
        stored = nibabel.load(file).dataobj
        data = stored.get_unscaled()  # integers stay integers: a scaled copy would be float64
    except MemoryError:
        raise
    except Exception as e:
        raise BadScan(f"{file} cannot be read ({_short(e)}). {_REPLACE}") from e
    if data.dtype.kind == "f":
        _check_finite(data, str(file))


def _check_voxels(data: np.ndarray, dataset_json: dict, named: str) -> None:
    channels = dataset_json.get("channel_names") or dataset_json["modality"]  # as nnU-Net: older files say modality
    if len(data) != len(channels):
        raise BadScan(
            f"{named}: {len(data)} channels, but the dataset has {len(channels)} "
            f"({', '.join(channels.values())}). Supply the same channels or remove the case."
        )
    _check_finite(data, named)
    if all(channel.min() == channel.max() for channel in data):
        raise BadScan(f"{named} is constant ({data.flat[0]:g} everywhere). {_REPLACE}")


def _check_finite(data: np.ndarray, named: str) -> None:
    if not np.isfinite(data).all():
        raise BadScan(f"{named} contains NaN or infinite values. Repair it or remove the case.")
