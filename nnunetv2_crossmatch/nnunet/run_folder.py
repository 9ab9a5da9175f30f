"""Where nnU-Net puts what a training makes, and what each file there is called."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunetv2_crossmatch.nnunet.training_log import TrainingLog
from nnunetv2_crossmatch.utilities.devices import device_option

FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"


def plans_of_seeds(plans: str, seeds: int) -> list[str]:
    """Identifier of the plans that each of so many repeats of a training uses: the same plans under another name.

    nnU-Net names its folders by trainer, plans and configuration, so its commands know a repeat by ``-p``.
    """
    return [plans, *(f"{plans}_seed{number}" for number in range(2, seeds + 1))]


class Progress(NamedTuple):
    """Epochs begun, epochs in all, mean seconds of an epoch; None where nnU-Net has not written it yet.

    elapsed: seconds of all its epochs that are over.
    """

    epoch: int | None
    epochs: int | None
    seconds: float | None
    elapsed: float = 0.0

    @property
    def left(self) -> float | None:
        """Seconds until the last epoch is over, if the others are as long as those before."""
        if self.seconds is None or self.epochs is None:
            return None
        return self.epochs * self.seconds - self.elapsed


@dataclass(frozen=True)
class RunFolder:
    """One trainer on one fold: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIG/fold_K``; it need not exist."""

    path: Path

    def __str__(self) -> str:
        return f"{self.trainer} fold {self.fold_and_seed}"

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

    @property
    def fold_and_seed(self) -> str:
        """``0``, of a repeat ``0 (seed 2)``; see :func:`plans_of_seeds`."""
        seed = re.search(r"_seed(\d+)$", self.plans)
        return f"{self.fold} (seed {seed[1]})" if seed else str(self.fold)

    def train_command(self, option: str = "", device: str | None = None) -> str:
        """nnU-Net's command that trains it on a device, by default this machine's best."""
        what = f"{self.dataset} {self.configuration} {self.fold} -tr {self.trainer} -p {self.plans}"
        return f"nnUNetv2_train {what} {option}".rstrip() + device_option(device)

    def predict_command(self, checkpoint: str, device: str) -> str:
        """nnU-Net's command that predicts with this fold."""
        what = f"-d {self.dataset} -c {self.configuration} -f {self.fold} -tr {self.trainer} -p {self.plans}"
        return f"nnUNetv2_predict -i IN -o OUT {what} -chk {checkpoint}{device_option(device)}"

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

    def progress(self) -> Progress:
        """As far as nnU-Net has written it down."""
        reached = self.log().epochs
        seconds = [epoch["seconds"] for epoch in reached.values() if "seconds" in epoch]
        mean = sum(seconds) / len(seconds) if seconds else None
        return Progress(max(reached) + 1 if reached else None, self.planned_epochs, mean, sum(seconds))

    def left_to_train(self) -> float | None:
        """Seconds that ``--c`` takes; epochs after the checkpoint that it goes on from are trained again.

        None where nnU-Net has not written it yet.
        """
        left = self.progress().left
        if left is None or self.is_trained:
            return left
        names = (LATEST, "checkpoint_best.pth")  # the first that nnU-Net finds
        saved = next((file.stat().st_mtime for name in names if (file := self.checkpoint(name)).exists()), 0.0)
        log = self.log()
        return left + sum(log.epochs[epoch]["seconds"] for epoch, ended in log.ended.items() if ended > saved)

    def go_on_command(self, device: str | None = None) -> str:
        """:meth:`train_command` of what is missing: what comes after the last checkpoint, the validation, or all."""
        option = "" if self.is_done else "--val" if self.is_trained else "--c" if self.checkpoints else ""
        return self.train_command(option, device)
