"""Train a run in this process, as ``nnUNetv2_train`` does."""

import time
from pathlib import Path

import torch
from nnunetv2.run.run_training import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_crossmatch.nnunet.run_folder import LATEST, RunFolder
from nnunetv2_crossmatch.trainers.records import record_resources


class _OutOfTime(Exception):
    """Ends nnU-Net's loop of epochs."""


def train(
    run: RunFolder, device_type: str, num_gpus: int, pretrained: Path | None = None, until: float | None = None
) -> bool:
    """Train it or continue its training, then validate it; one that is trained is only validated.

    Args:
        pretrained: a checkpoint that a training begins with, see nnU-Net's ``-pretrained_weights``.
        until: seconds of ``time.time``. No epoch begins that would last longer, if it is as long as the one before; a
            checkpoint is kept, and the next call continues. Only on a single GPU.

    Returns:
        False if it was stopped in time.

    Raises:
        RuntimeError: nnU-Net would train into another folder.
    """
    theirs = get_output_folder(run.dataset, run.trainer, run.plans, run.configuration, run.fold)
    if Path(theirs) != run.path:
        raise RuntimeError(f"nnUNet_results leads to {theirs} here, and to {run.path} where this run was made.")
    device = torch.device(device_type)
    if device.type == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    on_train_end, on_epoch_start = nnUNetTrainer.on_train_end, nnUNetTrainer.on_epoch_start
    begun: float | None = None  # the epoch before, by this process

    def record_and_end(trainer: nnUNetTrainer) -> None:
        record_resources(run.path, device)  # stock trainers record none; validation is no part of it
        on_train_end(trainer)

    def start_epoch(trainer: nnUNetTrainer) -> None:
        nonlocal begun
        before, begun = begun, time.time()  # checkpoints and plots are part of an epoch
        if until is None or before is None or begun + begun - before <= until:
            on_epoch_start(trainer)
            return
        record_resources(run.path, device)
        trainer.current_epoch -= 1  # as nnU-Net's on_train_end: a checkpoint is of the epoch that is over
        trainer.save_checkpoint(str(run.checkpoint(LATEST)))
        trainer.print_to_log_file(f"The time is over: stopped after epoch {trainer.current_epoch}.")
        raise _OutOfTime

    # in this process; with several GPUs others train
    nnUNetTrainer.on_train_end, nnUNetTrainer.on_epoch_start = record_and_end, start_epoch
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
    except _OutOfTime:
        return False
    finally:
        nnUNetTrainer.on_train_end, nnUNetTrainer.on_epoch_start = on_train_end, on_epoch_start
    return True
