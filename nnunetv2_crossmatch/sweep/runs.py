"""A run: one trainer on one fold. What nnU-Net has written of it, and the job that trains it."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.trainers.claims import claimed, job_folder
from nnunetv2_crossmatch.trainers.launch import train


@dataclass(frozen=True)
class Training:
    """The job of a run: train or continue it, and validate.

    gpus: for CUDA_VISIBLE_DEVICES; None leaves the choice to SLURM. (submitit's own ``visible_gpus`` takes numbers
        only, and a GPU may be named by its UUID.)
    pretrained, until: see :func:`train`.
    """

    run: RunFolder
    device: str
    num_gpus: int
    gpus: str | None = None
    pretrained: Path | None = None
    until: float | None = None

    def __call__(self) -> bool:
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        # submitit ignores SIGTERM; a data loader's worker must not, or a training that fails waits for it forever
        os.register_at_fork(after_in_child=_default_signals)
        with claimed(self.run, seconds=5):
            self._started.touch()
            return train(self.run, self.device, self.num_gpus, self.pretrained, self.until)

    @property
    def _started(self) -> Path:
        return job_folder(self.run) / "started"

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues when the time is nearly over: the same, which goes on from nnU-Net's checkpoint.

        None, and so no more jobs, where this one has saved nothing: the next would come no further.
        """
        saved = [file.stat().st_mtime for file in self.run.checkpoints]
        return DelayedSubmission(self) if max(saved, default=0) >= self._started.stat().st_mtime else None


def _default_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM may tell every process of a job that its time is nearly over
