"""Who trains a run: one process at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder


def job_folder(run: RunFolder) -> Path:
    """Logs and ids of its jobs; not in nnU-Net's folder, because that has to be of a training."""
    return run.model_folder.parent / "sweep" / run.model_folder.name / run.path.name


def lock_file(run: RunFolder) -> Path:
    return job_folder(run) / "lock"


def lock(descriptor: int) -> None:
    """For this process alone, and what it becomes by exec; raises OSError where another has it."""
    import fcntl  # Windows has none

    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loaders forked off would hold it, too


@contextmanager
def claimed(run: RunFolder, seconds: float = 0) -> Iterator[None]:
    """Hold the run; the system gives it back when the process ends, however it ends.

    seconds: how long to try, because another process may be looking whether the run is held.

    Raises:
        RuntimeError: another process holds it.
        OSError: the file system has no locks.
    """
    file = lock_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with open(file, "w") as stream:
        while True:
            try:
                lock(stream.fileno())
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= end:
                    raise RuntimeError(f"{run} is being trained by another process.") from None
                time.sleep(0.1)
            except OSError as e:
                reason = f"{e.strerror}: this file system has no locks. Put nnUNet_results on one that has"
                raise OSError(e.errno, reason, str(file)) from e
        yield


def is_claimed(run: RunFolder) -> bool:
    """Whether another process trains it."""
    try:
        with claimed(run):
            return False
    except RuntimeError:
        return True
