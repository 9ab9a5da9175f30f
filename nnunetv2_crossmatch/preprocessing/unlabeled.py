"""Unlabelled cases through nnU-Net's own preprocessor, with the plans of the labelled ones."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from filelock import FileLock
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunetv2_crossmatch.preprocessing.listing import UnlabeledDataError, list_unlabeled

MANIFEST = "manifest.json"
_INCOMING = ".incoming_"
_SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")
_SECONDS_BETWEEN_MANIFESTS = 10


def unlabeled_folder(preprocessed_folder: Path, configuration: ConfigurationManager) -> Path:
    """``nnUNet_preprocessed/DatasetXXX_NAME/<data_identifier>_unlabeled``."""
    return preprocessed_folder / f"{configuration.data_identifier}_unlabeled"


def unlabeled_cases_for_training(
    raw_folder: Path | None,
    preprocessed_folder: Path,
    plans: PlansManager,
    configuration_name: str,
    num_processes: int,
) -> list[str]:
    """Ids of the preprocessed unlabelled cases; preprocesses what is missing while the raw folder is there.

    Raises:
        UnlabeledDataError: no unlabelled scan anywhere, bad scans, or data preprocessed with other plans.
    """
    configuration = plans.get_configuration(configuration_name)
    folder = unlabeled_folder(preprocessed_folder, configuration)
    manifest = _read_manifest(folder)
    if manifest["cases"] and manifest["plans"] != _plans_stamp(plans, configuration):
        raise UnlabeledDataError(
            [
                f"{folder} was preprocessed with other plans than {plans.plans_name}. Run: nnUNetv2_crossmatch "
                f"preprocess -d {plans.dataset_name} -c {configuration_name} -p {plans.plans_name}"
            ]
        )
    dataset_json = load_json(str(preprocessed_folder / "dataset.json"))
    listed = None if raw_folder is None else list_unlabeled(raw_folder, dataset_json)
    if listed is not None:
        return _bring_up_to_date(listed, folder, plans, configuration_name, dataset_json, num_processes)
    if not manifest["cases"]:
        raise UnlabeledDataError(
            [
                f"{plans.dataset_name} has no unlabelled scans. Put them in {raw_folder or 'nnUNet_raw/...'}/imagesUn "
                f"(or list them in unlabeled.json), or train nnUNetTrainer."
            ]
        )
    return sorted(manifest["cases"])


def preprocess_unlabeled(
    raw_folder: Path, preprocessed_folder: Path, plans: PlansManager, configuration_name: str, num_processes: int
) -> list[str]:
    """Bring the preprocessed unlabelled cases of one configuration up to date.

    Does what is missing or stale (other plans, a changed file) and removes what is no longer listed. A
    case is written whole or not at all. A second process waits for the first.

    Returns:
        Ids of all unlabelled cases.

    Raises:
        UnlabeledDataError: names every scan that could not be used, after the others have been done.
        OSError: the disk is full.
    """
    dataset_json = load_json(str(preprocessed_folder / "dataset.json"))
    listed = list_unlabeled(raw_folder, dataset_json)
    if listed is None:
        raise UnlabeledDataError([f"{raw_folder} has neither unlabeled.json nor imagesUn."])
    folder = unlabeled_folder(preprocessed_folder, plans.get_configuration(configuration_name))
    return _bring_up_to_date(listed, folder, plans, configuration_name, dataset_json, num_processes)


def _bring_up_to_date(
    listed: dict[str, list[Path]],
    folder: Path,
    plans: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    num_processes: int,
) -> list[str]:
    configuration = plans.get_configuration(configuration_name)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for leftover in folder.glob(_INCOMING + "*"):
            shutil.rmtree(leftover)
        manifest = _read_manifest(folder)
        if manifest["plans"] != _plans_stamp(plans, configuration):
            manifest = {"plans": _plans_stamp(plans, configuration), "cases": {}}
        stale = {
            case: files
            for case, files in listed.items()
            if manifest["cases"].get(case, {}).get("source") != _source_stamp(files)
            or not all((folder / (case + suffix)).exists() for suffix in _SUFFIXES)
        }
        gone = manifest["cases"].keys() - listed.keys()
        for case in gone | stale.keys():
            manifest["cases"].pop(case, None)
        if gone or stale:
            _write_manifest(folder, manifest)  # before any file changes: what it lists is always whole
        for case in gone:
            for suffix in _SUFFIXES:
                (folder / (case + suffix)).unlink(missing_ok=True)
        if stale:
            _run(stale, folder, manifest, plans, configuration_name, dataset_json, num_processes)
    return sorted(listed)


def _run(
    cases: dict[str, list[Path]],
    folder: Path,
    manifest: dict,
    plans: PlansManager,
    configuration_name: str,
    dataset_json: dict,
    num_processes: int,
) -> None:
    problems = []
    written = time.monotonic()
    pool = ProcessPoolExecutor(min(num_processes, len(cases)), mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {
            pool.submit(_preprocess_case, case, files, folder, plans.plans, configuration_name, dataset_json): case
            for case, files in cases.items()
        }
        for future in tqdm(
            as_completed(futures),
            total=len(futures),
            desc=f"Preprocessing unlabelled {folder.name}",
            disable=not sys.stderr.isatty(),
        ):
            case = futures[future]
            try:
                manifest["cases"][case] = future.result()
            except _BadScan as e:
                problems.append(str(e))
            if time.monotonic() - written > _SECONDS_BETWEEN_MANIFESTS:
                _write_manifest(folder, manifest)
                written = time.monotonic()
    except BrokenProcessPool:
        raise RuntimeError(
            "A preprocessing worker was killed, most likely for lack of memory. Use fewer (-np)."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        _write_manifest(folder, manifest)
    if problems:
        raise UnlabeledDataError(sorted(problems))


class _BadScan(ValueError):
    """One scan that cannot be used; the message names it, the reason and the fix."""


def _preprocess_case(
    case: str, files: list[Path], folder: Path, plans_json: dict, configuration_name: str, dataset_json: dict
) -> dict:
    """Preprocess one case into ``folder``, whole or not at all; returns its entry in the manifest."""
    plans = PlansManager(plans_json)
    configuration = plans.get_configuration(configuration_name)
    named = ", ".join(map(str, files))
    sha256 = ""

    class CheckingPreprocessor(configuration.preprocessor_class):  # type: ignore[name-defined]
        def run_case_npy(self, data, *args, **kwargs):
            nonlocal sha256
            _check_scan(data, dataset_json, named)
            sha256 = hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
            return super().run_case_npy(data, *args, **kwargs)

    for file in files:
        if file.name.endswith((".nii", ".nii.gz")):
            _check_nifti(file)
    source = _source_stamp(files)
    incoming = Path(tempfile.mkdtemp(prefix=_INCOMING, dir=folder))
    try:
        CheckingPreprocessor(verbose=False).run_case_save(
            str(incoming / case), [str(f) for f in files], None, plans, configuration, dataset_json
        )
        for suffix in _SUFFIXES:
            os.replace(incoming / (case + suffix), folder / (case + suffix))
    except _BadScan:
        raise
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise
        raise _BadScan(f"{named} cannot be read ({e}). Replace the file or remove the case.") from e
    except Exception as e:
        if shutil.disk_usage(folder).free < 1 << 20:  # compressors report a full disk in words of their own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from e
        reason = " ".join(str(e).split())[-300:]
        raise _BadScan(f"{named} cannot be preprocessed ({reason}). Replace the file or remove the case.") from e
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return {"images": [str(f) for f in files], "source": source, "sha256": sha256}


def _check_nifti(file: Path) -> None:
    """SimpleITK fills up a truncated NIfTI file and turns NaN into 0 without a word, so look at it raw."""
    try:
        data = np.asanyarray(nibabel.load(file).dataobj)
    except Exception as e:
        raise _BadScan(f"{file} cannot be read ({e}). Replace the file or remove the case.") from e
    _check_finite(data, str(file))


def _check_finite(data: np.ndarray, named: str) -> None:
    if not np.isfinite(data).all():
        raise _BadScan(f"{named} contains NaN or infinite values. Repair it or remove the case.")


def _check_scan(data: np.ndarray, dataset_json: dict, named: str) -> None:
    channels = dataset_json["channel_names"]
    if len(data) != len(channels):
        raise _BadScan(
            f"{named}: {len(data)} channels, but the dataset has {len(channels)} "
            f"({', '.join(channels.values())}). Supply the same channels or remove the case."
        )
    _check_finite(data, named)
    if data.min() == data.max():
        raise _BadScan(f"{named} is constant ({data.flat[0]:g} everywhere). Replace it or remove the case.")


def _plans_stamp(plans: PlansManager, configuration: ConfigurationManager) -> str:
    """Hash of all that decides what the preprocessed arrays hold; patch and network may change freely."""
    relevant = {
        "reader": plans.plans["image_reader_writer"],
        "transpose": plans.transpose_forward,
        "intensities": plans.foreground_intensity_properties_per_channel,
        **{
            key: value
            for key, value in configuration.configuration.items()
            if key.startswith(
                ("preprocessor", "spacing", "normalization", "use_mask", "resampling_fn_data", "resampling_fn_seg")
            )
        },
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _source_stamp(files: list[Path]) -> list[list[int | str]]:
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _read_manifest(folder: Path) -> dict:
    file = folder / MANIFEST
    return load_json(str(file)) if file.exists() else {"plans": None, "cases": {}}


def _write_manifest(folder: Path, manifest: dict) -> None:
    temporary = folder / (MANIFEST + ".tmp")
    temporary.write_text(json.dumps(manifest, indent=1))
    os.replace(temporary, folder / MANIFEST)
