"""Tiny scans in the forms that the benchmarks are distributed in."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import Conversion, write_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled
from tests.conftest import ball, run, use_folders


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    use_folders(tmp_path, monkeypatch.setenv)
    return tmp_path


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def scan(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy ball, z y x, and its label with classes 1 and 2."""
    (image,), label = ball(np.random.default_rng(seed))
    return image.astype(np.int16), label


def write(array: np.ndarray, file: Path, spacing=(1.0, 1.0, 1.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))
    return image


def write_h5(file: Path, image: np.ndarray, label: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        content["image"], content["label"] = image, label


def names(folder: Path) -> list[str]:
    return sorted(f.name.split(".")[0] for f in folder.iterdir()) if folder.is_dir() else []


def counts(conversion: Conversion) -> list[int]:
    return [len(cases) for cases in (conversion.labeled, conversion.unlabeled, conversion.validation, conversion.test)]


def array(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def unlabeled_list(folder: Path) -> dict[str, Path]:
    entries = json.loads((folder / "unlabeled.json").read_text())
    return {case: Path(*entry["images"]) for case, entry in entries.items()}


def sha256(ids: Iterable) -> str:
    """Of a list's names in their order, to notice any change of it."""
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()[:16]


def round_trip(conversion: Conversion, configuration: str = "3d_fullres") -> tuple[Path, list[str]]:
    """Written, verified, planned and preprocessed by stock nnU-Net; then the unlabeled scans with its plans."""
    folder = write_dataset(conversion, 950)
    command = "nnUNetv2_plan_and_preprocess -d 950 --verify_dataset_integrity -np 1 -npfp 1 -c"
    run(*command.split(), configuration, nnUNet_n_proc_DA="1")
    dataset = Dataset.find("950")
    return folder, preprocess_unlabeled(Planned(dataset, dataset.plans("nnUNetPlans"), configuration), 1)
