"""What every trainer that uses unlabelled cases does before it trains."""

from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.listing import has_training_scans
from nnunetv2_crossmatch.preprocessing.splits import (
    ensure_splits,
    known_patients,
    validation_patients,
    without_patients,
)
from nnunetv2_crossmatch.preprocessing.unlabeled import unlabeled_cases_for_training

WARNINGS_IN_LOG = 10


class nnUNetTrainerWithUnlabeled(nnUNetTrainer):
    """nnU-Net with as many epochs as the class says, and the unlabelled cases of its fold, checked."""

    epochs = 1000
    iterations_per_epoch = 250
    val_iterations_per_epoch = 50

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise RuntimeError(
                f"{type(self).__name__} cannot train the second stage of a cascade ({configuration}). "
                "Train 2d, 3d_fullres or 3d_lowres with it."
            )
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.val_iterations_per_epoch
        self.save_every = 10

    @property
    def raw_folder(self) -> Path | None:
        """The dataset's raw folder, None where it is not at hand; perhaps only test scans are."""
        raw = Path(nnUNet_raw) / self.plans_manager.dataset_name if nnUNet_raw.is_set() else None
        return raw if raw is not None and has_training_scans(raw) else None

    def _prepare_unlabeled(self) -> list[str]:
        """Splits and unlabelled cases, made now if no command made them; every complaint comes from here."""
        raw = self.raw_folder
        preprocessed = Path(self.preprocessed_dataset_folder_base)
        patients = known_patients(raw, preprocessed)
        ensure_splits(preprocessed, self.dataset_class.get_identifiers(self.preprocessed_dataset_folder), patients)
        held_out = validation_patients(preprocessed, self.fold, patients)
        cases = unlabeled_cases_for_training(
            raw, preprocessed, self.plans_manager, self.configuration_name, default_num_processes
        )
        used = without_patients(cases, patients, held_out)
        if not used:
            raise ValueError(f"Every unlabelled scan is of a patient that fold {self.fold} validates. Train fold all.")
        self._check(raw, preprocessed)
        self.print_to_log_file(
            f"{len(used)} unlabelled cases; {len(cases) - len(used)} more belong to patients of the validation set"
        )
        return used

    def _check(self, raw: Path | None, preprocessed: Path) -> None:
        findings = check_dataset(raw, preprocessed, self.dataset_json, default_num_processes, self.fold)
        findings.raise_errors(self.plans_manager.dataset_name)
        for warning in findings.warnings[:WARNINGS_IN_LOG]:
            self.print_to_log_file("warning:", warning)
        if (more := len(findings.warnings) - WARNINGS_IN_LOG) > 0:
            self.print_to_log_file(
                f"{more} more warnings: nnUNetv2_crossmatch check -d {self.plans_manager.dataset_name}"
            )
