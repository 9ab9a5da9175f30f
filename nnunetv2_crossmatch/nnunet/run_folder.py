"""Where nnU-Net puts what a training makes, and what each file there is called."""

import re
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunetv2_crossmatch.nnunet.training_log import TrainingLog

FINAL = "checkpoint_final.pth"


@dataclass(frozen=True)
class RunFolder:
    """One trainer on one fold: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIG/fold_K``; it need not exist."""

    path: Path

    def __str__(self) -> str:
        return f"{self.trainer} fold {self.fold}"

    @classmethod
    def of(
        cls, dataset: str, trainer: str, plans: str, configuration: str, fold: int | str, results: Path | None = None
    ) -> "RunFolder":
        """``dataset`` by its name; ``results`` is nnUNet_results unless another folder is meant."""
        model = convert_trainer_plans_config_to_identifier(trainer, plans, configuration)
        return cls(Path(results or nnUNet_results) / dataset / model / f"fold_{fold}")

    @property
    def model_folder(self) -> Path:
        """``TRAINER__PLANS__CONFIG``, of all folds together."""
        return self.path.parent

    @property
    def dataset(self) -> str:
        return self.model_folder.parent.name

    @property
    def trainer(self) -> str:
        return convert_identifier_to_trainer_plans_config(self.model_folder.name)[0]

    @property
    def plans(self) -> str:
        return convert_identifier_to_trainer_plans_config(self.model_folder.name)[1]

    @property
    def configuration(self) -> str:
        return convert_identifier_to_trainer_plans_config(self.model_folder.name)[2]

    @property
    def fold(self) -> int | str:
        fold = self.path.name.removeprefix("fold_")
        return int(fold) if fold.isdecimal() else fold

    def train_command(self, option: str = "") -> str:
        """nnU-Net's command that trains it."""
        what = f"{self.dataset} {self.configuration} {self.fold} -tr {self.trainer} -p {self.plans}"
        return f"nnUNetv2_train {what} {option}".rstrip()

    def checkpoint(self, name: str = FINAL) -> Path:
        return self.path / name

    @property
    def checkpoints(self) -> list[Path]:
        """All that are there."""
        return sorted(self.path.glob("checkpoint_*.pth"))

    @property
    def is_trained(self) -> bool:
        """Whether the last epoch is over; the validation may be missing."""
        return self.checkpoint().exists()

    @property
    def validation(self) -> Path:
        """Folder of the predictions for the fold's validation cases."""
        return self.path / "validation"

    @property
    def is_done(self) -> bool:
        """Trained and validated, as a comparison needs it."""
        return self.is_trained and self.is_validated

    @property
    def is_validated(self) -> bool:
        """Whether all of these were predicted after the training; those of an earlier training do not count."""
        return (self.validation / "summary.json").exists() and self.log().validated

    def log(self) -> TrainingLog:
        return TrainingLog.read(self.path)

    @property
    def planned_epochs(self) -> int | None:
        """As nnU-Net wrote when the training began; None before that."""
        debug = self.path / "debug.json"
        # not read as JSON: nnU-Net may be writing it
        epochs = re.search(r'"num_epochs": "(\d+)"', debug.read_text()) if debug.exists() else None
        return int(epochs[1]) if epochs else None
