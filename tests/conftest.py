"""A small synthetic dataset, taken through nnU-Net's own commands once per test session."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.utilities.devices import device_option
from tests import warm

REPOSITORY = Path(__file__).parents[1]
REAL = Path(os.environ.get("NNUNETV2_CROSSMATCH_DATA", REPOSITORY.parent / "shared" / "data"))  # real scans, if any
BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
MISSING = {  # marker: why its tests cannot run here
    "real": None if REAL.is_dir() else f"needs the real scans in {REAL} (NNUNETV2_CROSSMATCH_DATA)",
    "gpu": None if torch.cuda.is_available() else "needs a CUDA device",
    "browser": None if BROWSER else "needs chromium on the PATH",
}
DATASET = "Dataset901_Balls"
ON_DEVICE = device_option()  # at the end of nnU-Net's commands that are printed
SMALL_ON_CPU = ("-p", "nnUNetPlansSmall", "-device", "cpu")  # of nnU-Net's commands
BIN = Path(sys.executable).parent

os.environ.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", OMP_NUM_THREADS="1", nnUNet_compile="f")


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        needs = [marker for marker in MISSING if item.get_closest_marker(marker)]
        if needs or "planned" in item.fixturenames:  # nnU-Net's planning and preprocessing take a while
            item.add_marker(pytest.mark.slow)
        for marker in needs:
            if reason := MISSING[marker]:
                item.add_marker(pytest.mark.skip(reason=reason))


def ball(rng: np.random.Generator, shape=(16, 24, 24), channels: int = 1) -> tuple[list[np.ndarray], np.ndarray]:
    """Noisy images of a ball (label 1) with a core (label 2)."""
    center = np.array(shape) / 2 + rng.uniform(-2, 2, 3)
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), center, strict=True)))
    label = (distance < 6).astype(np.uint8) + (distance < 3)
    return [(100 * label + rng.normal(0, 20, shape) + 200).astype(np.float32) for _ in range(channels)], label


def write_image(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def make_raw_dataset(folder: Path, labeled: int, unlabeled: int, test: int = 0, channels: int = 1, **extra) -> None:
    """imagesTr/labelsTr, imagesUn, imagesTs/labelsTs and dataset.json (updated with ``extra``)."""
    rng = np.random.default_rng(0)
    for part, prefix, count in (("Tr", "case", labeled), ("Un", "scan", unlabeled), ("Ts", "test", test)):
        for i in range(count):
            images, label = ball(rng, channels=channels)
            for channel, image in enumerate(images):
                write_image(image, folder / f"images{part}" / f"{prefix}{i}_{channel:04d}.nii.gz")
            if part != "Un":
                write_image(label, folder / f"labels{part}" / f"{prefix}{i}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {str(c): f"MR{c}" for c in range(channels)},
                "labels": {"background": 0, "shell": 1, "core": 2},
                "numTraining": labeled,
                "file_ending": ".nii.gz",
                **extra,
            }
        )
    )


def run(*command: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    """Run an installed command, a script or Python as a user would; its output is shown when it fails."""
    arguments = [*map(str, command)]
    if command[0] == "python":
        result = subprocess.run(
            [sys.executable, *arguments[1:]],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            timeout=600,
        )
    else:
        with tempfile.NamedTemporaryFile("r") as output:
            returncode = warm.call(arguments, environment, Path(output.name), timeout=600)
            result = subprocess.CompletedProcess(arguments, returncode, output.read())
    if check:
        assert result.returncode == 0, result.stdout
    return result


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {f.name: sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))}


def plan(dataset_id: str, *configurations: str, features=(4, 6, 8), batch: int = 2) -> None:
    """Stock planning and preprocessing, then small plans nnUNetPlansSmall for a fast CPU step."""
    run(
        "nnUNetv2_plan_and_preprocess",
        "-d",
        dataset_id,
        "-c",
        *configurations,
        "-np",
        "1",
        "-npfp",
        "1",
        nnUNet_n_proc_DA="1",
    )
    for configuration in configurations:
        patch = ["16", "16"] if configuration == "2d" else ["8", "16", "16"]
        run(
            REPOSITORY / "scripts" / "small_plans.py",
            "-d",
            dataset_id,
            "-c",
            configuration,
            "--features",
            *map(str, features),
            "--patch",
            *patch,
            "--batch",
            str(batch),
        )


def use_folders(base: Path, setenv: Callable[[str, str], None]) -> None:
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir(exist_ok=True)
        setenv(f"nnUNet_{name}", str(base / name))


@pytest.fixture(scope="session")
def planned(tmp_path_factory) -> Path:
    """Folder with raw/, preprocessed/, results/: five labeled, four unlabeled, two test cases, planned."""
    base = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        use_folders(base, patch.setenv)
        make_raw_dataset(base / "raw" / DATASET, labeled=5, unlabeled=4, test=2)
        plan("901", "2d", "3d_fullres")
    return base


@pytest.fixture
def dataset(planned: Path, tmp_path: Path, monkeypatch) -> Path:
    """A private copy of the planned dataset, with nnU-Net's three variables set to it."""
    base = tmp_path / "nnunet"
    shutil.copytree(planned, base)
    use_folders(base, monkeypatch.setenv)
    return base


@pytest.fixture
def make_trainer(dataset: Path):
    """make_trainer(name or class, configuration, edit=...) -> a seeded trainer on the CPU, not yet started."""

    def make(trainer, configuration="3d_fullres", fold="all", edit=lambda plans, dataset_json: None, seed=0):
        folder = dataset / "preprocessed" / DATASET
        plans = json.loads((folder / "nnUNetPlansSmall.json").read_text())
        dataset_json = json.loads((folder / "dataset.json").read_text())
        edit(plans, dataset_json)
        cls = recursive_find_trainer_class_by_name(trainer) if isinstance(trainer, str) else trainer
        np.random.seed(seed)
        torch.manual_seed(seed)
        return cls({**plans, "continue_training": False}, configuration, fold, dataset_json, torch.device("cpu"))

    return make


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """As on a full disk, which not everyone may mount: no file can be larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def wandb(monkeypatch) -> SimpleNamespace:
    """As the package that nnU-Net logs to if it is told so; it notes what it gets."""
    run = SimpleNamespace(step=0, config={}, summary={}, logged=[])
    run.log = lambda values, step: run.logged.append((step, values))
    fake = SimpleNamespace(run=run, init=lambda **options: run)
    monkeypatch.setattr("nnunetv2.training.logging.nnunet_logger.wandb", fake)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    return fake
