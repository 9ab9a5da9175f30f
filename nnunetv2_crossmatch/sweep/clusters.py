"""Where jobs run: on this machine, a few at a time, or on SLURM, which has a queue of its own."""

import math
import os
import re
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import submitit
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.sweep.runs import Training
from nnunetv2_crossmatch.trainers.claims import is_claimed, job_folder
from nnunetv2_crossmatch.utilities.files import write_json

YEAR = 365 * 24 * 60  # minutes; submitit wants a limit
MAX_REQUEUED = 1000  # submitit gives up after three


class Cluster(ABC):
    """Starts jobs of runs and says which of them are waiting or running."""

    interval: float  # seconds between two looks
    interrupted: str  # what becomes of jobs at Ctrl-C

    def __init__(self, runs: list[RunFolder], device: str, gpus_per_job: int):
        self.runs, self.device, self.gpus_per_job = runs, device, gpus_per_job
        self.jobs: dict[RunFolder, submitit.Job] = {}

    @abstractmethod
    def states(self) -> dict[RunFolder, str]:
        """``waiting`` or ``running`` of each run that has a job that has not ended."""

    @abstractmethod
    def start(self, run: RunFolder, after: RunFolder | None = None) -> None:
        """Start its job if there is room. ``after``: another run that has to be trained first."""

    def is_over(self, run: RunFolder) -> bool:
        """Whether no more of it is done for lack of time."""
        return False

    @abstractmethod
    def close(self) -> None:
        """End what would not go on without this process."""

    def error(self, run: RunFolder) -> str:
        """Of a job that has ended: the last line of what it raised, or else of its log, and the log's path."""
        job = self.jobs[run]
        log = job.paths.stderr
        if job.paths.result_pickle.exists():  # submitit writes one of every job that ends by itself
            text, why = str(job.exception()).partition("You can check full logs")[0], ""
        else:
            text = log.read_text(errors="replace") if log.exists() else ""
            why = "killed (memory? no checkpoint within --hours? canceled?) after: "
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip("- \n")), "no message")
        return f"{why}{last} ({log})"


class Local(Cluster):
    """This machine. A job has its own GPUs; without any there is one job at a time."""

    interval = 1.0
    interrupted = "The trainings are being ended. To resume, run the same command again."

    def __init__(
        self,
        runs: list[RunFolder],
        device: str,
        gpus_per_job: int,
        pretrained: Mapping[RunFolder, Path] = MappingProxyType({}),
        until: float | None = None,
    ):
        """``pretrained`` has the checkpoint that a run begins with; ``until``: see :func:`train`.

        Raises ValueError: fewer GPUs than a job wants.
        """
        super().__init__(runs, device, gpus_per_job)
        self._pretrained, self._until = pretrained, until
        if device != "cuda":
            self._slots = [""]
        else:
            gpus = visible_gpus()
            if gpus_per_job > len(gpus):
                raise ValueError(f"--gpus-per-job {gpus_per_job}: this machine shows {len(gpus)} GPUs. See -device.")
            starts = range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)
            self._slots = [",".join(gpus[i : i + gpus_per_job]) for i in starts]
        self._last_in: dict[str, RunFolder] = {}  # of each slot

    def states(self) -> dict[RunFolder, str]:
        return {run: "running" for run in self.runs if self._is_running(run)}

    def _is_running(self, run: RunFolder) -> bool:
        return not self.jobs[run].done() if run in self.jobs else is_claimed(run)  # by a job of another sweep

    def start(self, run: RunFolder, after: RunFolder | None = None) -> None:
        busy = {slot for slot, last in self._last_in.items() if self._is_running(last)}
        free = [slot for slot in self._slots if slot not in busy]
        if not free or after is not None or self.is_over(run):  # the time may be what has freed the slot just now
            return
        executor = submitit.LocalExecutor(job_folder(run))
        executor.update_parameters(timeout_min=YEAR)
        with _stderr_to(job_folder(run) / "controller.err"):  # at Ctrl-C submitit's process would print a traceback
            training = Training(run, self.device, self.gpus_per_job, free[0], self._pretrained.get(run), self._until)
            self.jobs[run] = executor.submit(training)
        self._last_in[free[0]] = run

    def is_over(self, run: RunFolder) -> bool:
        if run in self.jobs:
            return self._is_stopped(run)
        # where a training had no time for another epoch, one that is to begin has none for its first
        return self._until is not None and (
            time.time() >= self._until or any(self._is_stopped(last) for last in self._last_in.values())
        )

    def _is_stopped(self, run: RunFolder) -> bool:
        job = self.jobs[run]
        return job.done() and job.exception() is None and not job.result()

    def close(self) -> None:
        left = self._wait_for(list(self.jobs.values()), seconds=3)  # a terminal's Ctrl-C has reached them, too
        for job in left:
            job.cancel()
        self._wait_for(left, seconds=10)

    @staticmethod
    def _wait_for(jobs: list[submitit.Job], seconds: float) -> list[submitit.Job]:
        end = time.monotonic() + seconds
        while (jobs := [job for job in jobs if not job.done()]) and time.monotonic() < end:
            time.sleep(0.1)
        return jobs


class Slurm(Cluster):
    """SLURM. Every run's job is submitted at once; its id is kept, and found again by a later sweep.

    A job that is near its time limit goes back into the queue and continues from nnU-Net's checkpoint.
    """

    interval = 30.0
    interrupted = "Jobs on SLURM continue (squeue --me). Run the same command again to see them."

    def __init__(self, runs: list[RunFolder], device: str, gpus_per_job: int, partition: str | None, hours: float):
        """Raises ValueError without SLURM's commands, RuntimeError if squeue does not answer."""
        super().__init__(runs, device, gpus_per_job)
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise ValueError(
                f"--cluster slurm: there is no {', '.join(missing)} here. Run it where SLURM's commands are."
            )
        cpus = gpus_per_job * (get_allowed_n_proc_DA() + 1)  # nnU-Net's workers, and who trains
        self._parameters = {
            "time": math.ceil(60 * hours),  # 0 would be no limit
            "nodes": 1,
            "cpus_per_task": cpus,
            "srun_args": [f"--cpus-per-task={cpus}"],  # srun does not ask sbatch since SLURM 22.05
            "additional_parameters": {"requeue": True, "kill_on_invalid_dep": "yes"},
            **({"partition": partition} if partition else {}),
            **({"gpus_per_node": gpus_per_job} if device == "cuda" else {}),
        }
        self._queue = self._read_queue()
        self._gone: set[RunFolder] = set()
        for run in runs:
            file = job_folder(run) / "job.json"
            if file.exists() and (job_id := load_json(str(file))["id"]) in self._queue:
                self.jobs[run] = submitit.SlurmJob(job_folder(run), job_id)

    @staticmethod
    def _read_queue() -> dict[str, str]:
        result = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i %T"], capture_output=True, text=True, check=False
        )
        if result.returncode:
            raise RuntimeError(f"squeue does not answer: {result.stderr.strip()}")
        return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())

    def states(self) -> dict[RunFolder, str]:
        with suppress(RuntimeError):  # a controller may be busy; the next look will tell
            self._queue = self._read_queue()
        states = {run: "running" for run in self.runs if run not in self.jobs and is_claimed(run)}  # by a local sweep
        for run, job in self.jobs.items():
            if job.job_id in self._queue:
                states[run] = "running" if self._queue[job.job_id] in ("RUNNING", "COMPLETING") else "waiting"
            elif run not in self._gone and not run.is_done:
                self._gone.add(run)  # until the next look: what it wrote is seen late over a network
                states[run] = "running"
        return states

    def start(self, run: RunFolder, after: RunFolder | None = None) -> None:
        dependency = {}
        if after is not None:
            if after not in self.jobs or (job_id := self.jobs[after].job_id) not in self._queue:
                return
            dependency = {"dependency": f"afterok:{job_id}"}
        executor = submitit.SlurmExecutor(job_folder(run), max_num_timeout=MAX_REQUEUED)
        name = re.sub(r"\W+", "_", f"{run.trainer}_{run.fold_and_seed}").strip("_")
        executor.update_parameters(**self._parameters, **dependency, job_name=name)
        job = executor.submit(Training(run, self.device, self.gpus_per_job))
        write_json({"id": job.job_id}, job_folder(run) / "job.json")
        self.jobs[run] = job
        self._queue[job.job_id] = "PENDING"

    def close(self) -> None:
        """Jobs go on by themselves."""


@contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """Of processes that are started meanwhile."""
    kept = os.dup(2)
    with open(file, "a") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def visible_gpus() -> list[str]:
    """This process's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(i) for i in range(count)]
