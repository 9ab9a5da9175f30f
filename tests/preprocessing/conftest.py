"""A dataset whose unlabeled cases are preprocessed."""

import shutil
from pathlib import Path

import pytest
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled, unlabeled_cases_for_training
from tests.conftest import DATASET


class Place:
    """The dataset's folders and short calls."""

    def __init__(self, base: Path):
        self.raw, self.preprocessed = base / "raw" / DATASET, base / "preprocessed" / DATASET
        self.folder = self.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
        self.scans = self.raw / "imagesUn"

    @property
    def plans(self) -> PlansManager:
        return PlansManager(str(self.preprocessed / "nnUNetPlansSmall.json"))

    def preprocess(self, num_processes: int = 1) -> list[str]:
        return preprocess_unlabeled(self.planned(), num_processes)

    def for_training(self, raw=True) -> list[str]:
        return unlabeled_cases_for_training(self.planned(raw), 1)

    def planned(self, raw=True) -> Planned:
        dataset_json = load_json(str(self.preprocessed / "dataset.json"))
        return Planned(Dataset(self.raw if raw else None, self.preprocessed, dataset_json), self.plans, "3d_fullres")

    def times(self) -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in self.folder.glob("*.b2nd")}


@pytest.fixture(scope="package")
def done(planned, tmp_path_factory) -> Place:
    """A dataset whose unlabeled cases are preprocessed, to copy from."""
    base = tmp_path_factory.mktemp("done") / "nnunet"
    shutil.copytree(planned, base)
    place = Place(base)
    place.preprocess()
    return place


@pytest.fixture
def place(done, tmp_path) -> Place:
    shutil.copytree(done.raw.parents[1], tmp_path / "nnunet")  # copies keep their times
    return Place(tmp_path / "nnunet")
