import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import REPOSITORY
from tests.warm import run_shell

pytestmark = pytest.mark.slow

STEPS = [f"benchmark_{dataset}_compile_{compiled}" for dataset in (991, 992, 993) for compiled in "ft"]
BENCH = ["prepare_toy", "pool_toy", "loaders_toy", "toy_supervised_0", "toy_crossmatch_0"]


def gpu(folder: Path, *options: str) -> tuple[int, list[dict]]:
    """Exit status, and the parts so far."""
    with TemporaryDirectory() as commands:  # a socket's name is short
        line = (str(REPOSITORY / "scripts" / "gpu.sh"), str(folder), "--dry-run", *options)
        status = run_shell(*line, folder=Path(commands), timeout=600).returncode
    lines = folder / "dry" / "parts.jsonl"
    return status, [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


def test_every_part_runs_and_what_fails_stops_no_other_and_is_tried_again(tmp_path, capfd):
    folder = tmp_path / "dry"
    blocked = folder / f"{STEPS[0]}.json"
    blocked.mkdir(parents=True)
    status, parts = gpu(tmp_path)
    codes = {part["part"]: part["exit"] for part in parts}
    names = ["device", "nccl_1", "plans", *STEPS, *BENCH]
    assert [part["part"] for part in parts] == names
    assert {name for name in names if codes[name]} == {STEPS[0]}, [folder / f"{name}.log" for name in names]
    assert status and f"Failed: {STEPS[0]}" in capfd.readouterr().err
    for name in (*STEPS[1:], "loaders_toy"):
        written = json.loads((folder / f"{name}.json").read_text())
        assert written["trainers"].keys() == {"nnUNetTrainer", "nnUNetTrainerCrossMatch"}
    arms = [json.loads(line)["arm"] for line in (folder / "toy" / "runs.jsonl").read_text().splitlines()]
    assert arms == ["supervised", "crossmatch"]
    assert {file.name for file in tmp_path.iterdir()} == {"dry"}, "a real run begins from nothing"

    blocked.rmdir()
    status, again = gpu(tmp_path)
    assert status == 0 and [part["part"] for part in again[len(parts) :]] == [STEPS[0]]


def test_without_time_it_says_what_is_left(tmp_path, capfd):
    status, parts = gpu(tmp_path, "--minutes", "0")
    assert status and not parts
    assert "No time was left for device" in capfd.readouterr().err
