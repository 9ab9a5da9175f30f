"""A run: one trainer on one fold. What nnU-Net has written of it, and the job that trains it."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_output_folder
from submitit.core.utils import DelayedSubmission

from nnunetv2_crossmatch.comparison.runs import TrainingLog


@dataclass(frozen=True)
class Run:
    """One trainer on one fold; the dataset by its name."""

    dataset: str
    configuration: str
    plans: str
    trainer: str
    fold: int | str

    def __str__(self) -> str:
        return f"{self.trainer} fold {self.fold}"

    @property
    def folder(self) -> Path:
        """nnU-Net's."""
        return Path(get_output_folder(self.dataset, self.trainer, self.plans, self.configuration, self.fold))

    @property
    def job_folder(self) -> Path:
        """Logs and ids of its jobs; not in nnU-Net's folder, because that has to be of a training."""
        return Path(nnUNet_results) / self.dataset / "sweep" / self.folder.parent.name / self.folder.name

    @property
    def trained(self) -> bool:
        return (self.folder / "checkpoint_final.pth").exists()

    @property
    def done(self) -> bool:
        """As the comparison wants it: an older validation does not count."""
        summary = self.folder / "validation" / "summary.json"
        return self.trained and summary.exists() and TrainingLog.read(self.folder).validated


class Progress(NamedTuple):
    """Epochs begun, epochs in all, mean seconds of an epoch; None where nnU-Net has not written it yet."""

    epoch: int | None
    epochs: int | None
    seconds: float | None


def progress(run: Run) -> Progress:
    """Read nnU-Net's debug.json and logs."""
    debug = run.folder / "debug.json"
    epochs = re.search(r'"num_epochs": "(\d+)"', debug.read_text()) if debug.exists() else None  # perhaps half written
    total = int(epochs[1]) if epochs else None
    reached = TrainingLog.read(run.folder).epochs
    seconds = [epoch["seconds"] for epoch in reached.values() if "seconds" in epoch]
    return Progress(max(reached) + 1 if reached else None, total, sum(seconds) / len(seconds) if seconds else None)


@contextmanager
def claimed(run: Run, seconds: float = 0) -> Iterator[None]:
    """Hold the run; the system gives it back when the process ends, however it ends.

    seconds: how long to try, because another process may be looking whether the run is held.

    Raises:
        RuntimeError: another process holds it.
        OSError: the file system has no locks.
    """
    import fcntl  # Windows has none

    run.job_folder.mkdir(parents=True, exist_ok=True)
    file = run.job_folder / "lock"
    end = time.monotonic() + seconds
    with open(file, "w") as stream:
        while True:
            try:
                fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loaders forked off would hold it, too
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= end:
                    raise RuntimeError(f"{run} is being trained by another process.") from None
                time.sleep(0.1)
            except OSError as e:
                reason = f"{e.strerror}: this file system has no locks. Put nnUNet_results on one that has"
                raise OSError(e.errno, reason, str(file)) from e
        yield


def is_claimed(run: Run) -> bool:
    """Whether another process trains it."""
    try:
        with claimed(run):
            return False
    except RuntimeError:
        return True


@dataclass(frozen=True)
class Training:
    """The job of a run: train or continue it, and validate.

    gpus: for CUDA_VISIBLE_DEVICES; None leaves the choice to SLURM. (submitit's own ``visible_gpus`` takes numbers
        only, and a GPU may be named by its UUID.)
    """

    run: Run
    device: str
    num_gpus: int
    gpus: str | None = None

    def __call__(self) -> None:
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        # submitit ignores SIGTERM; a data loader's worker must not, or a training that fails waits for it for ever
        os.register_at_fork(after_in_child=_default_signals)
        with claimed(self.run, seconds=5):
            self._started.touch()
            self._train()

    @property
    def _started(self) -> Path:
        return self.run.job_folder / "started"

    def _train(self) -> None:
        import torch
        from nnunetv2.run.run_training import run_training
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        from nnunetv2_crossmatch.trainers.records import record_resources

        device = torch.device(self.device)
        if device.type == "cuda":
            torch.set_num_threads(1)  # as nnUNetv2_train does
        run = self.run
        on_train_end = nnUNetTrainer.on_train_end

        def record_and_end(trainer):
            record_resources(run.folder, device)  # stock trainers record none; validation is no part of it
            on_train_end(trainer)

        nnUNetTrainer.on_train_end = record_and_end  # in this process; with several GPUs others train
        try:
            run_training(
                run.dataset,
                run.configuration,
                run.fold,
                run.trainer,
                run.plans,
                num_gpus=self.num_gpus,
                continue_training=not run.trained and any(run.folder.glob("checkpoint_*.pth")),
                only_run_validation=run.trained,
                device=device,
            )
        finally:
            nnUNetTrainer.on_train_end = on_train_end

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues when the time is nearly over: the same, which goes on from nnU-Net's checkpoint.

        None, and so no more jobs, where this one has saved nothing: the next would come no further.
        """
        saved = [file.stat().st_mtime for file in self.run.folder.glob("checkpoint_*.pth")]
        return DelayedSubmission(self) if max(saved, default=0) >= self._started.stat().st_mtime else None


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM may tell every process of a job that its time is nearly over
