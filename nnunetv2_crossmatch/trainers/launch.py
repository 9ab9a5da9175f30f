"""Train a run in this process, as ``nnUNetv2_train`` does."""

from pathlib import Path

import torch
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.trainers.records import record_resources


def train(run: RunFolder, device_type: str, num_gpus: int, pretrained: Path | None = None) -> None:
    """Train it or continue its training, then validate it; one that is trained is only validated.

    Args:
        pretrained: a checkpoint that a training begins with, see nnU-Net's ``-pretrained_weights``.

    Raises:
        RuntimeError: nnU-Net would train into another folder.
    """
    theirs = get_output_folder(run.dataset, run.trainer, run.plans, run.configuration, run.fold)
    if Path(theirs) != run.path:
        raise RuntimeError(f"nnUNet_results leads to {theirs} here, and to {run.path} where this run was made.")
    device = torch.device(device_type)
    if device.type == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    on_train_end = nnUNetTrainer.on_train_end

    def record_and_end(trainer: nnUNetTrainer) -> None:
        record_resources(run.path, device)  # stock trainers record none; validation is no part of it
        on_train_end(trainer)

    nnUNetTrainer.on_train_end = record_and_end  # in this process; with several GPUs others train
    try:
        run_training(
            run.dataset,
            run.configuration,
            run.fold,
            run.trainer,
            run.plans,
            None if pretrained is None or run.checkpoints else str(pretrained),
            num_gpus=num_gpus,
            continue_training=not run.is_trained and bool(run.checkpoints),
            only_run_validation=run.is_trained,
            device=device,
        )
    finally:
        nnUNetTrainer.on_train_end = on_train_end
