"""A run: one trainer on one fold. What nnU-Net has written of it, and the job that trains it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nnunetv2.paths import nnUNet_results
from submitit.core.utils import DelayedSubmission


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
        return Path(nnUNet_results) / self.dataset / self._model / f"fold_{self.fold}"

    @property
    def job_folder(self) -> Path:
        """Logs and ids of its jobs; not in nnU-Net's folder, because that has to be of a training."""
        return Path(nnUNet_results) / self.dataset / "sweep" / self._model / f"fold_{self.fold}"

    @property
    def _model(self) -> str:
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    @property
    def trained(self) -> bool:
        return (self.folder / "checkpoint_final.pth").exists()

    @property
    def done(self) -> bool:
        return self.trained and (self.folder / "validation" / "summary.json").exists()


class Progress(NamedTuple):
    """Epochs begun, epochs in all, mean seconds of an epoch; None where nnU-Net has not written it yet."""

    epoch: int | None
    epochs: int | None
    seconds: float | None


def progress(run: Run) -> Progress:
    """Read nnU-Net's debug.json and the newest log that has an epoch; validation alone writes a log without one."""
    debug = run.folder / "debug.json"
    epochs = re.search(r'"num_epochs": "(\d+)"', debug.read_text()) if debug.exists() else None  # perhaps half written
    total = int(epochs[1]) if epochs else None
    logs = sorted(run.folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for log in logs:
        text = log.read_text(errors="replace")
        if begun := re.findall(r": Epoch (\d+) $", text, re.MULTILINE):
            seconds = [float(s) for s in re.findall(r"Epoch time: ([\d.]+) s", text)]
            return Progress(int(begun[-1]) + 1, total, sum(seconds) / len(seconds) if seconds else None)
    return Progress(None, total, None)


@contextmanager
def claimed(run: Run) -> Iterator[None]:
    """Hold the run, on this machine; the system gives it back when the process ends, however it ends.

    Raises:
        RuntimeError: another process holds it.
    """
    import fcntl  # Windows has none

    run.job_folder.mkdir(parents=True, exist_ok=True)
    with open(run.job_folder / "lock", "w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loaders forked off would hold it, too
        except (BlockingIOError, PermissionError):
            raise RuntimeError(f"{run} is being trained by another process of this machine.") from None
        yield


@dataclass(frozen=True)
class Training:
    """The job of a run: train or continue it, and validate.

    gpus: for CUDA_VISIBLE_DEVICES; None leaves the choice, and that the run is trained once, to SLURM. (submitit's
        own ``visible_gpus`` takes numbers only, and a GPU may be named by its UUID.)
    """

    run: Run
    device: str
    num_gpus: int
    gpus: str | None = None

    def __call__(self) -> None:
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        with nullcontext() if self.gpus is None else claimed(self.run):
            self._train()

    def _train(self) -> None:
        import torch
        from nnunetv2.run.run_training import run_training

        from nnunetv2_crossmatch.trainers.resources import record_resources

        device = torch.device(self.device)
        if device.type == "cuda":
            torch.set_num_threads(1)  # as nnUNetv2_train does
        run = self.run
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
        if self.num_gpus == 1:  # several GPUs are used by processes of their own
            record_resources(run.folder, device)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues when the time is nearly over: the same, which goes on from nnU-Net's checkpoint."""
        return DelayedSubmission(self)
