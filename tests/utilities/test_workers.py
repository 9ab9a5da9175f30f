import os
import signal
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
        print(pool.submit("nothing", os.getpid).result(), flush=True)
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


def die_at(file: Path, number: int) -> None:
    if file.name == "bad.nii.gz":
        os.kill(os.getpid(), number)
    time.sleep(2)  # a pool may notice a death only when another worker is done


def end_at(files: list[Path]) -> None:
    os._exit(7)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "killed at /scans/bad.nii.gz, most likely for lack of memory. Use fewer"),
        (signal.SIGABRT, r"aborted at /scans/bad.nii.gz \(SIGABRT\): the library .* Replace or rename that file"),
    ],
)
def test_a_worker_that_dies_is_an_error_that_says_how_at_which_file_and_what_to_do(number, said):
    jobs = {name: (Path("/scans", name), number) for name in ("good.nii.gz", "bad.nii.gz")}
    with pytest.raises(RuntimeError, match=said):
        list(run_in_workers(die_at, jobs, 2, ""))


def test_a_worker_that_ends_itself():
    jobs = {i: ([Path("a_0000.nii"), Path("a_0001.nii")],) for i in range(2)}
    with pytest.raises(RuntimeError, match=r"ended at a_0000.nii, a_0001.nii \(exit code 7\)"):
        list(run_in_workers(end_at, jobs, 2, ""))


def _is_alive(pid: int) -> bool:
    """A zombie that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
