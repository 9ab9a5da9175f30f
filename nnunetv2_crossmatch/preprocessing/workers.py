"""Many scans at once, in worker processes with a progress bar."""

import multiprocessing
import sys
from collections.abc import Callable, Generator, Hashable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

Key = TypeVar("Key", bound=Hashable)


def run_in_workers(
    function: Callable, jobs: Mapping[Key, tuple], num_processes: int, description: str
) -> Generator[tuple[Key, Future], None, None]:
    """Call ``function(*arguments)`` for every job; yields (key, future) as they are done.

    Close it (``contextlib.closing``), lest after an exception the other jobs go on.

    Raises:
        RuntimeError: a worker was killed.
    """
    if not jobs:
        return
    workers = min(num_processes, len(jobs))
    # starting a process takes seconds, so a single one is not worth it
    pool: Executor = (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 1 else ThreadPoolExecutor(1)
    )
    try:
        futures = {pool.submit(function, *arguments): key for key, arguments in jobs.items()}
        for future in tqdm(
            as_completed(futures), total=len(futures), desc=description, disable=not sys.stderr.isatty()
        ):
            if isinstance(future.exception(), BrokenProcessPool):
                raise RuntimeError(
                    "A worker process was killed, most likely for lack of memory. Use fewer (-np, or in training "
                    "nnUNet_def_n_proc)."
                )
            yield futures[future], future
    finally:
        pool.shutdown(cancel_futures=True)
