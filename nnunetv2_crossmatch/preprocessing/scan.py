"""One scan: read and checked, and if it is unlabeled then taken through nnU-Net's own preprocessor."""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_crossmatch.nnunet.images import are_volumes, has_no_geometry, is_flat, read_images
from nnunetv2_crossmatch.preprocessing.manifest import ARRAY_SUFFIXES, source_stamp
from nnunetv2_crossmatch.preprocessing.scan_file import REPLACE, BadScan, check_file, check_spacing
from nnunetv2_crossmatch.utilities.dataset_json import channel_names
from nnunetv2_crossmatch.utilities.files import INCOMING, check_writable

PERCENTILES = (1, 25, 50, 75, 99)


class WrongChannels(BadScan):
    """Another number of channels than dataset.json names."""

    def __init__(self, message: str, channels: int) -> None:
        super().__init__(message)
        self.channels = channels

    def __reduce__(self) -> tuple:  # it comes from a worker
        return type(self), (str(self), self.channels)


class _Unchanged(Exception):
    """Voxels and spacing are those that were preprocessed already."""


def preprocess_scan(
    files: list[Path],
    target: Path,
    plans_json: dict,
    configuration_name: str,
    dataset_json: dict,
    known: dict | None,
) -> dict:
    """Preprocess one case, whole or not at all.

    Args:
        target: folder and id of the case.
        known: manifest entry of the arrays that are there; if voxels and spacing are the same nothing is written.

    Returns:
        The manifest's entry of the case: its source stamp, :func:`describe` and ``bare``, whether its header has no
        geometry.

    Raises:
        BadScan: unreadable, truncated, NaN, infinite, constant, wrong number of channels, a spacing that cannot be.
        OSError: the output cannot be written.
    """
    plans = PlansManager(plans_json)
    configuration = plans.get_configuration(configuration_name)
    folder = target.parent
    entry: dict = {}

    class CheckingPreprocessor(configuration.preprocessor_class):  # type: ignore[name-defined]
        def run_case(self, image_files: list[str], seg_file: str | None, *args: Any, **kwargs: Any) -> Any:
            data, properties = read_scan(files, plans.image_reader_writer_class(), dataset_json)
            entry.update(describe(data, properties["spacing"]), bare=has_no_geometry(properties))
            if known is not None and all(known[key] == entry[key] for key in ("sha256", "spacing")):
                raise _Unchanged
            _check_resampling(data.shape[1:], properties["spacing"], plans, configuration, files)
            return self.run_case_npy(data, None, properties, *args, **kwargs)

    source = source_stamp(files)
    incoming = Path(tempfile.mkdtemp(prefix=INCOMING, dir=folder))
    try:
        CheckingPreprocessor(verbose=False).run_case_save(
            str(incoming / target.name), [], None, plans, configuration, dataset_json
        )
        for suffix in ARRAY_SUFFIXES:
            os.replace(incoming / (target.name + suffix), folder / (target.name + suffix))
    except _Unchanged:
        pass
    except (BadScan, MemoryError):
        raise
    except Exception as e:
        check_writable(folder)
        if isinstance(e, OSError):  # the scan was read and checked: the output is the trouble
            raise
        raise BadScan(f"{', '.join(map(str, files))} cannot be preprocessed ({_short(e)}). {REPLACE}") from e
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return {"source": source, **entry}


def read_scan(files: list[Path], reader: BaseReaderWriter, dataset_json: dict) -> tuple[np.ndarray, dict]:
    """Image (channels, z, y, x) and properties as nnU-Net's reader gives them.

    Raises:
        BadScan: see :func:`preprocess_scan`.
    """
    named = ", ".join(map(str, files))
    for file in files:
        check_alone(file, reader)
    data, properties = read_quietly(lambda: read_images(files, reader), named)
    check_spacing(properties["spacing"], named)
    _check_voxels(data, dataset_json, named)
    return data, properties


def read_quietly(read: Callable[[], tuple[np.ndarray, dict]], named: str) -> tuple[np.ndarray, dict]:
    """What a reader of nnU-Net gives; what it prints is part of its error.

    Raises:
        BadScan: it cannot read it.
    """
    said = StringIO()
    try:
        with redirect_stdout(said):
            data, properties = read()
    except MemoryError:
        raise
    except Exception as e:
        # nnU-Net prints in what the channels differ and raises without a word
        reason = _short(e) or " ".join(said.getvalue().partition("ERROR! ")[2].splitlines()[:3])
        raise BadScan(f"{named} cannot be read ({reason}). {REPLACE}") from e
    print(said.getvalue(), end="")
    return data, properties


def describe(data: np.ndarray, spacing: Iterable[float]) -> dict:
    """Figures by which scans are compared.

    Args:
        data: (channels, z, y, x).
        spacing: z, y, x in mm.

    Returns:
        sha256 of shape and voxels; ``voxels``, a hash that is also the same for a scan saved again in another
        orientation; shape, spacing, and per channel the intensities at :data:`PERCENTILES` of the voxels that
        are not 0.
    """
    data = np.ascontiguousarray(data)
    sha256 = hashlib.sha256(repr(data.shape).encode())
    sha256.update(data.data.cast("B"))  # a copy of a CT would be a gigabyte
    few = data[(slice(None), *(slice(None, None, 1 + size // 128) for size in data.shape[1:]))]
    foreground = [channel[channel != 0] for channel in few]
    return {
        "sha256": sha256.hexdigest(),
        "voxels": _hash_in_any_order(data),
        "shape": list(data.shape[1:]),
        "spacing": [float(s) for s in spacing],
        "intensities": [np.percentile(f, PERCENTILES).tolist() if f.size else None for f in foreground],
    }


def _hash_in_any_order(data: np.ndarray) -> str:
    """Of the extents and of how often each value occurs: a sum of hashed values does not depend on their order."""
    total, values = 0, data.reshape(-1)
    for start in range(0, values.size, 1 << 20):
        bits = values[start : start + (1 << 20)].astype(np.float32).view(np.uint32).astype(np.uint64)
        for multiplier in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9):  # those of the splitmix64 generator
            bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(multiplier)
        total += int((bits ^ (bits >> np.uint64(32))).sum(dtype=np.uint64))
    return f"{'x'.join(map(str, sorted(data.shape)))}-{total % (1 << 64):016x}"


_LARGEST = 1e12  # float32 sums of the squares of larger values are infinite
_SMALLEST = float(np.finfo(np.float32).tiny)
_MOST_VOXELS = 1 << 34  # 64 GB


def _short(e: Exception) -> str:
    return " ".join(str(e).split())[-300:]


def check_alone(file: Path, reader: BaseReaderWriter, is_mask: bool = False) -> None:
    """Raises BadScan: what can be seen of one file without nnU-Net's reader, see :func:`check_file`.

    SimpleITK fills up a truncated NIfTI file and turns NaN into 0 without a word, so look at it raw.
    """
    try:
        check_file(file, reader, is_mask)
        if not file.name.lower().endswith((".nii", ".nii.gz")):
            return
        data = nibabel.load(file).dataobj.get_unscaled()  # integers stay integers: a scaled copy would be float64
    except (BadScan, MemoryError):
        raise
    except Exception as e:
        raise BadScan(f"{file} cannot be read ({_short(e)}). {REPLACE}") from e
    if data.dtype.kind == "f":
        check_finite(data, str(file))


def _check_voxels(data: np.ndarray, dataset_json: dict, named: str) -> None:
    channels = channel_names(dataset_json)
    if len(data) != len(channels):
        raise WrongChannels(
            f"{named}: {len(data)} channels, but the dataset has {len(channels)} "
            f"({', '.join(channels)}). Supply the same channels or remove the case.",
            len(data),
        )
    check_finite(data, named)
    ranges = [(float(channel.min()), float(channel.max())) for channel in data]
    if all(high - low < _SMALLEST for low, high in ranges):
        raise BadScan(f"{named} is constant ({data.flat[0]:g} everywhere). {REPLACE}")
    if (largest := max(max(-low, high) for low, high in ranges)) > _LARGEST:
        raise BadScan(f"{named} has values up to {largest:g}. Correct their scaling or remove the case.")


def check_finite(data: np.ndarray, named: str) -> None:
    """Raises BadScan: values that are no numbers."""
    if not np.isfinite(data).all():
        raise BadScan(f"{named} contains NaN or infinite values. Repair it or remove the case.")


def _check_resampling(
    shape: tuple[int, ...],
    spacing: Iterable[float],
    plans: PlansManager,
    configuration: ConfigurationManager,
    files: list[Path],
) -> None:
    """A wrong spacing would have the scan resampled to nothing or to more than any memory holds."""
    are_3d = are_volumes(plans.plans["original_median_shape_after_transp"])
    if is_flat(shape, list(spacing)) and are_3d and plans.plans["image_reader_writer"] != "NaturalImage2DIO":
        raise BadScan(
            f"{', '.join(map(str, files))} is a 2D image, but the labeled scans are 3D; nnU-Net would take "
            f"{next(iter(spacing)):g} mm for the spacing that it does not have. Supply the 3D scan or remove the case."
        )
    extents, spacings = (np.array([list(of)[i] for i in plans.transpose_forward], float) for of in (shape, spacing))
    axes = len(configuration.spacing)  # 2d resamples only two
    extents[-axes:] *= spacings[-axes:] / configuration.spacing
    if np.round(extents).min() < 1 or extents.prod() > max(_MOST_VOXELS, 10 * math.prod(shape)):
        raise BadScan(
            f"{', '.join(map(str, files))}: {'x'.join(map(str, shape))} voxels of {' x '.join(map(str, spacing))} mm "
            f"would be resampled to {'x'.join(f'{extent:.0f}' for extent in extents)} by the plans "
            f"({' x '.join(map(str, configuration.spacing))} mm). Correct its spacing or remove the case."
        )
