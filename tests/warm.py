"""Processes that have imported nnU-Net already; for a test that takes seconds, eight of them would be imports.

What asks for the "spawn" method gets a fork of a server that has done the imports and nothing else. As with "spawn",
its arguments are pickled, and it has the environment and the folder of the process that starts it.
"""

import multiprocessing
import os
import runpy
import sys
from importlib.metadata import entry_points
from multiprocessing import context, resource_tracker, spawn
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from typing import Any

import torch

_prepare, _preparation_data = spawn.prepare, spawn.get_preparation_data


def _data_with_environment(name: str) -> dict[str, Any]:
    return {**_preparation_data(name), "environ": dict(os.environ)}


def _prepare_with_environment(data: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(data["environ"])
    _forkserver.ensure_running = resource_tracker.ensure_running  # this one's: Python would start a second server
    _prepare(data)


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


def call(command: list[str], environment: dict[str, str], output: Path, timeout: float) -> int:
    """Run an installed command, or a script if it ends with .py; returns its exit status.

    Args:
        output: file for what it prints.
        timeout: in seconds.
    """
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=(command, environment, output))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{' '.join(command)} takes longer than {timeout} s\n{output.read_text()}")
    return process.exitcode


def _run(command: list[str], environment: dict[str, str], output: Path) -> None:
    os.environ.update(environment)
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
