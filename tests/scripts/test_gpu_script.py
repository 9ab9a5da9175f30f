import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import REPOSITORY
from tests.warm import run_shell

pytestmark = pytest.mark.slow


def test_every_part_runs_and_none_a_second_time(tmp_path):
    def call() -> list[dict]:
        with TemporaryDirectory() as commands:  # a socket's name is short
            line = (str(REPOSITORY / "scripts" / "gpu.sh"), str(tmp_path), "--dry-run")
            assert run_shell(*line, folder=Path(commands), timeout=600).returncode == 0
        return [json.loads(line) for line in (tmp_path / "parts.jsonl").read_text().splitlines()]

    parts = call()
    assert {part["exit"] for part in parts} == {0}
    steps = [f"benchmark_{dataset}_compile_{compiled}" for dataset in (991, 992, 993) for compiled in "ft"]
    bench = ["prepare_toy", "loaders_toy", "toy_supervised_0", "toy_crossmatch_0"]
    assert [part["part"] for part in parts] == ["cuda", "plans", *steps, *bench]
    for name in (*steps, "loaders_toy"):
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert written["trainers"].keys() == {"nnUNetTrainer", "nnUNetTrainerCrossMatch"}
    arms = [json.loads(line)["arm"] for line in (tmp_path / "toy" / "runs.jsonl").read_text().splitlines()]
    assert arms == ["supervised", "crossmatch"]
    assert call() == parts
