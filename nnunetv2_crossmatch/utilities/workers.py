"""Many scans at once, in worker processes with a progress bar."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Key = TypeVar("Key", bound=Hashable)


@contextmanager
def open_pool(workers: int) -> Iterator[Executor]:
    """Spawned processes; a thread instead of a single one, because starting a process takes seconds.

    Raises:
        RuntimeError: a worker was killed.
    """
    pool: Executor = (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
        if workers > 1
        else ThreadPoolExecutor(1)
    )
    try:
        yield pool
    except BrokenProcessPool as e:
        raise RuntimeError(
            "A worker process was killed, most likely for lack of memory. Use fewer (-np, or in training "
            "nnUNet_def_n_proc)."
        ) from e
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """When the parent is killed its workers would wait for jobs forever."""

    def wait() -> None:
        if parent := multiprocessing.parent_process():  # a worker has one; for the type checker
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run_in_workers(
    function: Callable, jobs: Mapping[Key, tuple], num_processes: int, description: str
) -> Generator[tuple[Key, Future], None, None]:
    """Call ``function(*arguments)`` forevery job; yields (key, future) as they are done.

    Close it (``contextlib.closing``), or the other jobs go on after an exception.

    Raises:
        RuntimeError: a worker was killed.
    """
    if not jobs:
        return
    with open_pool(min(num_processes, len(jobs))) as pool:
        futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
        for future in tqdm(
            as_completed(futures), total=len(futures), desc=description, disable=not sys.stderr.isatty()
        ):
            if isinstance(broken := future.exception(), BrokenProcessPool):
                raise broken
            yield futures[future], future
