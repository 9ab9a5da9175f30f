"""Offline self-training as an nnU-Net trainer."""

from dataclasses import asdict
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.configuration import default_num_processes
from torch.optim import Optimizer

from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.dataset import MixedDataset, PseudoLabeledDataset
from nnunetv2_crossmatch.self_training.preprocess import pseudo_labels_for_training
from nnunetv2_crossmatch.self_training.record import RECORD, model_hash
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled
from nnunetv2_crossmatch.utilities.errors import some
from nnunetv2_crossmatch.utilities.files import write_json


class nnUNetTrainerPseudoLabel(nnUNetTrainerWithUnlabeled):
    """nnU-Net on the fold's labeled cases and on what ``nnUNetv2_crossmatch pseudo-label`` wrote for the fold.

    Loss, augmentation and schedule are nnU-Net's. Labeled and pseudo-labeled cases are drawn half and half.
    ``teacher`` is the trainer that wrote the pseudo-labels, None for the only one that did.
    """

    teacher: str | None = None

    def initialize(self) -> None:
        # dataset_json goes into the checkpoint and stays as it is
        self.label_manager = self.plans_manager.get_label_manager(with_ignore_label(self.dataset_json))
        super().initialize()
        self._stepped = False
        self.optimizer.register_step_pre_hook(self._before_step)

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._cases = self._prepare_unlabeled()
        self._pseudo_labels, made_with = self._prepare_pseudo_labels()
        super().on_train_start()
        if self.local_rank == 0:
            self._note(made_with, Path(self.output_folder) / RECORD)

    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        """Not called where mixed precision skips a step. Elsewhere nnU-Net takes it with whatever the gradients are."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._stepped = self.grad_scaler is not None or bool(
            torch.stack(torch._foreach_norm(gradients)).isfinite().all()
        )
        if not self._stepped:
            optimizer.zero_grad(set_to_none=True)  # nothing is left to step with

    def train_step(self, batch: dict) -> dict:
        self._stepped = False
        result = super().train_step(batch)
        self._count_skipped(self._stepped, float(result["loss"]))
        return result

    def _prepare_pseudo_labels(self) -> tuple[Path, dict]:
        """Folder of the preprocessed labels; their origin, and "files": SHA-256 of each."""
        folder, origin, files = pseudo_labels_for_training(
            self.planned, self.fold, self._cases, self.do_split()[1], self.teacher, default_num_processes
        )
        self.print_to_log_file(f"pseudo-labels of {_short(asdict(origin))}: {folder}")
        if left_out := sorted(set(self._cases) - files.keys()):
            self.print_to_log_file(
                f"{len(left_out)} scans are left out, as {RECORD} and the marks of a review say: {some(left_out)}"
            )
            self._cases = list(files)
        models = Path(self.output_folder_base).parent / folder.parent.name
        checkpoints = [models / f"fold_{fold}" / origin.checkpoint for fold in origin.folds]
        if self.local_rank == 0 and all(map(Path.exists, checkpoints)) and model_hash(checkpoints) != origin.model:
            self.print_to_log_file(f"warning: {models} was trained again since it wrote these pseudo-labels.")
        return folder, {**asdict(origin), "files": files}

    def _note(self, made_with: dict, file: Path) -> None:
        if self.current_epoch > 0 and file.exists() and (before := load_json(str(file))) != made_with:
            changed = [case for case, sha in made_with["files"].items() if before["files"].get(case) != sha]
            self.print_to_log_file(
                f"warning: this training began with pseudo-labels of {_short(before)} and goes on with those of "
                f"{_short(made_with)}; {len(changed)} of {len(made_with['files'])} have changed."
            )
        write_json(made_with, file)

    def get_tr_and_val_datasets(self) -> tuple[MixedDataset, MixedDataset]:
        labeled, validation = super().get_tr_and_val_datasets()
        pseudo_labeled = PseudoLabeledDataset(self._pseudo_labels, self.planned.unlabeled_folder, list(self._cases))
        return (
            MixedDataset([labeled, pseudo_labeled], self.label_manager),
            MixedDataset([validation], self.label_manager),
        )


def _short(origin: dict) -> str:
    return f"{origin['trainer']}, {origin['checkpoint']} ({origin['model'][:8]}), threshold {origin['threshold']:g}"
