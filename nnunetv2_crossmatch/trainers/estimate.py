"""What a training will cost on this machine: a few real steps of it, with nnU-Net's own loaders."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.nnunet.trainer_class import find_trainer_class
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.splits import read_splits
from nnunetv2_crossmatch.trainers.records import read_resources, record_resources
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled

SECONDS = 10.0  # of steps that are timed in each phase
FEWEST = 3  # steps; the first third of all of them starts kernels and takes batches that were waiting
SHAPES = 20  # scans whose sizes stand for all


@dataclass(frozen=True)
class Cost:
    """Of one fold.

    epoch_seconds: without and with self-training; the same for a trainer that does not wait for it.
    validation_seconds: of the held-out cases after the training, roughly.
    peak_memory: bytes; on a GPU what torch's tensors took, else the process's resident memory; None: not known.
    folds: in which the labeled cases are held out; fold ``all`` validates them all.
    """

    trainer: str
    epochs: int
    epoch_seconds: tuple[float, float]
    validation_seconds: float
    peak_memory: int | None
    folds: int = 1

    def hours(self, fold: int | str = 0) -> tuple[float, float]:
        """Training and validation, if self-training never begins and if it begins at once."""
        first, last = (self.epochs * seconds + self.seconds_to_validate(fold) for seconds in self.epoch_seconds)
        return first / 3600, last / 3600

    def seconds_to_validate(self, fold: int | str) -> float:
        return self.validation_seconds * (self.folds if fold == "all" else 1)


def measure(planned: Planned, trainer: str, device: torch.device) -> Cost:
    """In a process of its own, because memory is a process's; nothing of it stays on the disk.

    Where the unlabeled scans are not preprocessed yet, labeled ones stand for them.

    Raises:
        RuntimeError: out of memory; there is no such trainer.
        ValueError: not preprocessed.
    """
    labeled = planned.dataset.preprocessed / planned.configuration.data_identifier
    if not labeled.is_dir():
        raise ValueError(
            f"There is no {labeled}, so no step can be taken. Run nnUNetv2_preprocess -d {planned.dataset.id} "
            f"-plans_name {planned.plans.plans_name} -c {planned.configuration_name}."
        )
    what = planned.dataset.name, planned.plans.plans_name, planned.configuration_name, trainer, device.type
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(_measure, *what).result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"The process that tried {trainer} was killed, most likely for lack of memory: a training would be, too."
        ) from None


def disk_for_unlabeled(planned: Planned, scans: int) -> int:
    """Bytes that so many scans take when preprocessed, if they are as large as the labeled ones."""
    folder = planned.dataset.preprocessed / planned.configuration.data_identifier
    sizes = [file.stat().st_size for file in folder.iterdir()]
    return scans * sum(sizes) // max(1, len(list(folder.glob("*.pkl"))))


def _measure(dataset: str, plans_name: str, configuration: str, name: str, device: str) -> Cost:
    """In a new process."""
    preprocessed = Dataset.find_preprocessed(dataset).preprocessed
    plans = {**load_json(str(preprocessed / f"{plans_name}.json")), "continue_training": False}
    dataset_json = load_json(str(preprocessed / "dataset.json"))
    with tempfile.TemporaryDirectory() as results, open(os.devnull, "w") as log:
        os.environ["nnUNet_results"] = results  # of this process
        torch.set_num_threads(1 if device == "cuda" else os.cpu_count() or 1)  # as nnUNetv2_train does
        with redirect_stdout(log), redirect_stderr(log):
            cls = _without_checks(find_trainer_class(name))
            trainer = cls(plans, configuration, "all", dataset_json, torch.device(device))
            return _cost(name, trainer)


def _without_checks(cls: type[nnUNetTrainer]) -> type[nnUNetTrainer]:
    """Checks read every scan that is new."""
    if not issubclass(cls, nnUNetTrainerWithUnlabeled):
        return cls

    def prepared(trainer: nnUNetTrainerWithUnlabeled) -> list[str]:
        if cases := sorted(Manifest.read(trainer.planned.unlabeled_folder).cases):
            return cases
        found = trainer.planned
        trainer.planned = _LabeledAlone(found.dataset, found.plans, found.configuration_name)
        return trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)

    return type(cls.__name__, (cls,), {"_prepare_unlabeled": prepared})


class _LabeledAlone(Planned):
    @property
    def unlabeled_folder(self) -> Path:
        return self.dataset.preprocessed / self.configuration.data_identifier


def _cost(name: str, trainer: Any) -> Cost:
    """Of a trainer that has not started."""
    epochs, method = trainer.num_epochs, getattr(trainer, "method_class", None)
    waits = method is not None and method.waits and not trainer.begins_trained
    # an epoch to warm up, one of each phase; what does not wait is looked at in the middle of its training
    trainer.num_epochs = 3 if waits else 2
    trainer.ready_at = trainer.num_epochs - 1
    trainer.disable_checkpointing = True
    trainer.current_epoch = 1  # as if continued: no other model is asked for
    trainer.on_train_start()
    trainer.current_epoch = 0
    _epoch_seconds(trainer, 0)
    seconds, step = zip(*(_epoch_seconds(trainer, SECONDS) for _ in range(1, trainer.num_epochs)), strict=True)
    record_resources(Path(trainer.output_folder), trainer.device)
    peak = read_resources(Path(trainer.output_folder)).get("peak_memory_bytes")
    cases = trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)
    folds = len(read_splits(Path(trainer.preprocessed_dataset_folder_base))) or min(5, len(cases))
    validation = _validation_seconds(trainer, cases, step[-1] / trainer.batch_size) / folds
    trainer.current_epoch = 0
    trainer.on_train_end()  # ends the loaders' processes
    return Cost(name, epochs, (seconds[0], seconds[-1]), validation, peak, folds)


def _epoch_seconds(trainer: nnUNetTrainer, seconds: float) -> tuple[float, float]:
    """Of a whole epoch of nnU-Net's loop, and of a validation step, from as many steps as fit into ``seconds``."""
    start = time.perf_counter()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    count, count_val = trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch
    queued, queued_val = (
        2 * getattr(some, "num_cached", 0) for some in (trainer.dataloader_train, trainer.dataloader_val)
    )
    outputs, times = _take(lambda: trainer.train_step(next(trainer.dataloader_train)), count, seconds, queued)
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        outputs, times_val = _take(
            lambda: trainer.validation_step(next(trainer.dataloader_val)), count_val, seconds / 3, queued_val
        )
        trainer.on_validation_epoch_end(outputs)
    trainer.on_epoch_end()
    rest = time.perf_counter() - start - sum(times) - sum(times_val)
    step = float(np.mean(times[queued + 1 :] or times[len(times) // 3 :]))
    step_val = float(np.mean(times_val[queued_val + 1 :] or times_val[len(times_val) // 3 :]))
    return count * step + count_val * step_val + rest, step_val


def _take(step: Callable[[], dict], count: int, seconds: float, queued: int) -> tuple[list[dict], list[float]]:
    """Results and seconds of steps: ``count`` at most.

    The clock starts after the first, which may compile, and the ``queued`` batches that loaders have made before; where
    these take twice as long as asked for, no loader is waited for.
    """
    first = queued + 1
    results: list[dict] = []
    times: list[float] = []
    while len(times) < count and (
        len(times) < FEWEST or (sum(times[first:]) < seconds and sum(times[1:]) < 2 * seconds)
    ):
        start = time.perf_counter()
        results.append(step())  # gives numbers, so a GPU has finished it
        times.append(time.perf_counter() - start)
    return results, times


def _validation_seconds(trainer: nnUNetTrainer, cases: list[str], seconds: float) -> float:
    """Of all cases, roughly: nnU-Net's windows, mirrored, at ``seconds`` a patch."""
    folder, patch = trainer.preprocessed_dataset_folder, trainer.configuration_manager.patch_size
    dataset = trainer.dataset_class(folder, cases[:SHAPES])
    windows = [_windows(dataset.load_case(case)[0].shape[1:], patch) for case in dataset.identifiers]
    mirrored = 2 ** len(trainer.inference_allowed_mirroring_axes or ())
    return len(cases) * float(np.mean(windows)) * mirrored * seconds


def _windows(shape: Sequence[int], patch: Sequence[int]) -> int:
    """Of nnU-Net's prediction of a scan (z, y, x); in 2D of each slice."""
    slices, shape = shape[: len(shape) - len(patch)], shape[len(shape) - len(patch) :]
    padded = tuple(map(max, shape, patch))
    return prod(slices) * prod(map(len, compute_steps_for_sliding_window(padded, tuple(patch), 0.5)))
