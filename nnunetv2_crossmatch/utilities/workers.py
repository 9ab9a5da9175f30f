"""Many scans at once, in worker processes with a progress bar."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from nnunetv2_crossmatch.utilities.main_guard import require_main_guard

Key = TypeVar("Key", bound=Hashable)


class Pool:
    """Takes jobs, each with the files that it is about."""

    def __init__(self, executor: Executor, notes: Path | None) -> None:
        self._executor, self._notes = executor, notes

    def submit(self, about: str, function: Callable, *arguments: Any) -> Future:
        if self._notes is None:
            return self._executor.submit(function, *arguments)
        return self._executor.submit(_noted, self._notes, about, function, *arguments)


@contextmanager
def open_pool(workers: int) -> Iterator[Pool]:
    """Spawned processes; a thread instead of a single one, because starting a process takes seconds.

    Raises:
        RuntimeError: a worker died (says how, and at which file); the script has no ``if __name__ == "__main__"``.
    """
    if workers <= 1:
        with ThreadPoolExecutor(1) as thread:
            try:
                yield Pool(thread, None)
            finally:
                thread.shutdown(cancel_futures=True)
        return
    require_main_guard()
    context = _Context()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as notes:
        executor = ProcessPoolExecutor(workers, context, _end_with_parent)
        try:
            yield Pool(executor, Path(notes))
        except BrokenProcessPool as e:
            raise RuntimeError(_how_it_died(context.started, Path(notes))) from e
        finally:
            executor.shutdown(cancel_futures=True)


class _Context(SpawnContext):
    """Remembers its processes; those of a broken pool are forgotten by the executor."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> SpawnProcess:  # type: ignore[override]
        self.started.append(SpawnProcess(*args, **kwargs))
        return self.started[-1]


def _noted(notes: Path, about: str, function: Callable, *arguments: Any) -> Any:
    """Call the function; what it is about stands in a file of the process until it is done."""
    note = notes / str(os.getpid())
    note.write_text(about, "utf-8", "surrogateescape")
    try:
        return function(*arguments)
    finally:
        note.unlink()


def _how_it_died(processes: list[SpawnProcess], notes: Path) -> str:
    """One message for the first worker that died; the others were ended because of it."""
    for process in processes:
        process.join(5)
    # the executor ends the others by SIGTERM
    died = [process for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)]
    if not died:
        return "A worker process was ended."
    # of those that were at a file, if any was
    died.sort(key=lambda process: not (notes / str(process.pid)).exists())
    code, note = died[0].exitcode or 0, notes / str(died[0].pid)
    at = f" at {note.read_text('utf-8', 'surrogateescape')}" if note.exists() else " before its first file"
    if -code == getattr(signal, "SIGKILL", 9):
        return (
            f"A worker process was killed{at}, most likely for lack of memory. Use fewer (-np, or in training "
            "nnUNet_def_n_proc)."
        )
    if code < 0:
        name = signal.Signals(-code).name
        return (
            f"A worker process was aborted{at} ({name}): the library that reads or writes it gave up. Replace or "
            "rename that file, or remove the case."
        )
    return f"A worker process ended{at} (exit code {code}); its own message is above."


def _end_with_parent() -> None:
    """When the parent is killed its workers would wait for jobs forever."""

    def wait() -> None:
        if parent := parent_process():  # a worker has one; for the type checker
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_in_workers(
    function: Callable, jobs: Mapping[Key, tuple], num_processes: int, description: str
) -> Generator[tuple[Key, Future], None, None]:
    """Call ``function(*arguments)`` for every job; yields (key, future) as they are done.

    Close it (``contextlib.closing``), or the other jobs go on after an exception.

    Args:
        jobs: if a job's first argument is a file or a list of files, then a worker's death names these.

    Raises:
        RuntimeError: see :func:`open_pool`.
    """
    if not jobs:
        return
    with open_pool(min(num_processes, len(jobs))) as pool:
        futures = {pool.submit(_about(key, arguments), function, *arguments): key for key, arguments in jobs.items()}
        for future in tqdm(
            as_completed(futures), total=len(futures), desc=description, disable=not sys.stderr.isatty()
        ):
            if isinstance(broken := future.exception(), BrokenProcessPool):
                raise broken
            yield futures[future], future


def _about(key: Hashable, arguments: tuple) -> str:
    first = arguments[0] if arguments else None
    files = first if isinstance(first, list) and first else [first]
    return ", ".join(map(str, files)) if all(isinstance(file, Path) for file in files) else str(key)
