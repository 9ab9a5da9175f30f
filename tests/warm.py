"""Processes that have imported nnU-Net already; for a test that takes seconds, eight of them would be imports.

What asks for the "spawn" method gets a fork of a server that has done the imports and nothing else. As with "spawn",
its arguments are pickled, and it has the environment and the folder of the process that starts it.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from multiprocessing import context, resource_tracker, spawn
from multiprocessing.connection import Connection, Listener
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger

_prepare, _preparation_data = spawn.prepare, spawn.get_preparation_data


def _data_with_environment(name: str) -> dict[str, Any]:
    return {**_preparation_data(name), "environ": dict(os.environ)}


def _prepare_with_environment(data: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(data["environ"])
    _forkserver.ensure_running = resource_tracker.ensure_running  # this one's: Python would start a second server
    _prepare(data)


# 16 million pixels after each epoch, more than all else that a toy's epoch takes; test_semi_supervised.py draws them
plot_progress_png = LocalLogger.plot_progress_png
LocalLogger.plot_progress_png = lambda logger, folder: Path(folder, "progress.png").touch()
# nnU-Net takes all cores for one training; pytest's workers would wait for each other in every convolution
torch.set_num_threads(1)
torch.set_num_threads = lambda threads: None
spawn.get_preparation_data, spawn.prepare = _data_with_environment, _prepare_with_environment
context._concrete_contexts["spawn"] = context._concrete_contexts["forkserver"]
multiprocessing.set_forkserver_preload(
    [
        "tests.warm",
        "nnunetv2.run.run_training",
        "nnunetv2.inference.predict_from_raw_data",
        "nnunetv2_crossmatch.trainers",
    ]
)


# Python without its packages starts in a moment; what is neither a script of ours nor a command is Python's own affair
ASK = """#!{python} -IS
import os, sys
from multiprocessing.connection import Client
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python":
    if not arguments[0].endswith(".py"):
        os.execv("{python}", ["{python}", *arguments])
    name = arguments.pop(0)
with Client("{address}", authkey=b"warm") as connection:
    connection.send(([name, *arguments], dict(os.environ), os.getcwd()))
    status, output = connection.recv()
print(output, end="")
sys.exit(status)
"""


def call(command: list[str], environment: dict[str, str], output: Path, timeout: float, folder: str = ".") -> int:
    """Run an installed command, or a script if it ends with .py, in ``folder``; returns its exit status.

    Args:
        output: file for what it prints.
        timeout: in seconds.
    """
    arguments = (command, environment, output, folder)
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=arguments)
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(command)} takes longer than {timeout} s\n{output.read_text()}")
    return process.exitcode


def run_shell(*command: str, folder: Path, timeout: float) -> subprocess.CompletedProcess:
    """Run a script of the shell, for which ``folder`` gets a ``$PYTHON`` and installed commands that are warm."""
    with Listener(str(folder / "socket"), authkey=b"warm") as listener:
        names = ["python", *(entry.name for entry in entry_points(group="console_scripts") if "nnUNet" in entry.name)]
        for name in names:
            (folder / name).write_text(ASK.format(python=sys.executable, address=listener.address))
            (folder / name).chmod(0o755)
        Thread(target=_serve, args=(listener, timeout), daemon=True).start()
        environment = {**os.environ, "PYTHON": str(folder / "python"), "PATH": f"{folder}:{os.environ['PATH']}"}
        return subprocess.run(["bash", *command], env=environment, timeout=timeout)


def _serve(listener: Listener, timeout: float) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:  # closed
            return
        Thread(target=_answer, args=(connection, timeout), daemon=True).start()


def _answer(connection: Connection, timeout: float) -> None:
    command, environment, folder = connection.recv()
    with tempfile.NamedTemporaryFile("r") as output:
        status = call(command, environment, Path(output.name), timeout, folder)
        connection.send((status, output.read()))


def _run(command: list[str], environment: dict[str, str], output: Path, folder: str) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    sys.executable = environment.get("PYTHON", sys.executable)
    with output.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.argv = command
    if command[0].endswith(".py"):
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
        return
    (entry,) = entry_points(group="console_scripts", name=command[0])
    sys.exit(entry.load()())
