"""A dataset with models of nnUNetTrainer that were never trained, one for each fold."""

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.splits import ensure_splits
from nnunetv2_crossmatch.self_training import predict
from nnunetv2_crossmatch.self_training.predict import Written, write_pseudo_labels
from tests.conftest import DATASET, use_folders


class Place:
    """The dataset's folders and short calls."""

    def __init__(self, base: Path):
        self.raw, self.preprocessed = base / "raw" / DATASET, base / "preprocessed" / DATASET
        self.model = base / "results" / DATASET / "nnUNetTrainer__nnUNetPlansSmall__3d_fullres"
        self.labels = self.raw / "pseudo_labels" / self.model.name

    @property
    def plans(self) -> PlansManager:
        return PlansManager(str(self.preprocessed / "nnUNetPlansSmall.json"))

    def planned(
        self, raw: bool = True, plans: PlansManager | None = None, configuration: str = "3d_fullres"
    ) -> Planned:
        folder = self.raw if raw else None
        dataset_json = load_json(str((folder or self.preprocessed) / "dataset.json"))
        return Planned(Dataset(folder, self.preprocessed, dataset_json), plans or self.plans, configuration)

    def change_dataset_json(self, **changes) -> None:
        for folder in (self.raw, self.preprocessed):
            content = load_json(str(folder / "dataset.json"))
            save_json({**content, **changes}, str(folder / "dataset.json"), sort_keys=False)

    def make_model(self, fold: int | str, seed: int, certainty: float = 30.0) -> None:
        """A model folder as nnU-Net leaves it, with drawn weights whose predictions are of all classes."""
        plans = {**self.plans.plans, "continue_training": False}
        dataset_json = load_json(str(self.preprocessed / "dataset.json"))
        torch.manual_seed(seed)
        trainer = nnUNetTrainer(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))
        trainer.initialize()
        for layer in trainer.network.decoder.seg_layers:
            layer.weight.data *= certainty
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        trainer.logger.log("epoch_end_timestamps", 0.0, 0)
        trainer.save_checkpoint(str(self.model / f"fold_{fold}" / "checkpoint_final.pth"))
        plans.pop("continue_training", None)
        save_json(plans, str(self.model / "plans.json"), sort_keys=False)
        save_json(dataset_json, str(self.model / "dataset.json"), sort_keys=False)
        validation = self.model / f"fold_{fold}" / "validation"
        validation.mkdir(exist_ok=True)
        for name in (*(f"{case}.nii.gz" for case in self.validation(fold)), "summary.json"):
            (validation / name).touch()

    def validation(self, fold: int | str = 0) -> list[str]:
        return [] if fold == "all" else load_json(str(self.preprocessed / "splits_final.json"))[fold]["val"]

    def write(self, folds=(0,), threshold=0.6, trainer="nnUNetTrainer", **options) -> dict[int | str, Written]:
        return dict(
            write_pseudo_labels(
                self.planned(),
                trainer,
                None if folds is None else list(folds),
                threshold,
                "checkpoint_final.pth",
                torch.device("cpu"),
                **{"num_processes": 1, **options},
            )
        )

    def record(self, fold: int | str = 0) -> dict[str, dict]:
        return json.loads((self.labels / f"fold_{fold}" / "pseudo_labels.json").read_text())["cases"]

    def interrupt(self, patch: pytest.MonkeyPatch, after: int, **options) -> None:
        """A run that is killed after so many cases."""
        label_all = predict._predict

        def some(*arguments):
            yield from islice(label_all(*arguments), after)
            raise KeyboardInterrupt

        with patch.context() as during, pytest.raises(KeyboardInterrupt):
            during.setattr(predict, "_predict", some)
            self.write(**options)


@pytest.fixture(scope="package")
def labeled_by_models(planned, tmp_path_factory) -> Path:
    """Models of folds 0 and 1, pseudo-labels of fold 0; to copy from."""
    base = tmp_path_factory.mktemp("pseudo") / "nnunet"
    shutil.copytree(planned, base)
    with pytest.MonkeyPatch.context() as patch:
        use_folders(base, patch.setenv)
        place = Place(base)
        ensure_splits(place.preprocessed, [f"case{i}" for i in range(5)], {})
        for fold in (0, 1):
            place.make_model(fold, seed=fold)
        place.write()
    return base


@pytest.fixture
def place(labeled_by_models, tmp_path, monkeypatch) -> Place:
    base = tmp_path / "nnunet"
    shutil.copytree(labeled_by_models, base)  # copies keep their times
    use_folders(base, monkeypatch.setenv)
    return Place(base)
