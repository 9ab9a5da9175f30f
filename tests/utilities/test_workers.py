import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunetv2_crossmatch.utilities.workers import run_in_workers

PROGRAM = """
import os
from nnunetv2_crossmatch.utilities.workers import open_pool
if __name__ == "__main__":
    with open_pool(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        input()
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, tmp_path / "program.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.kill()
    deadline = time.monotonic() + 30
    while _is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _is_alive(worker)


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match="lack of memory. Use fewer"):
        list(run_in_workers(os._exit, {0: (1,), 1: (1,)}, 2, ""))


def _is_alive(pid: int) -> bool:
    """A zombie that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
