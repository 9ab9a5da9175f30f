"""The notebook, cell by cell, on the toy dataset."""

import json
import os
import subprocess
import sys

from tests.conftest import BIN, REPOSITORY

NOTEBOOK = REPOSITORY / "scripts" / "example.ipynb"
TOY = """
DATASET, CONFIGURATION, PLANS, FOLD, DEVICE, PROCESSES = 901, "3d_fullres", "nnUNetPlansSmall", 0, "cpu", 1
TRAINERS = ["nnUNetTrainerMeanTeacher_smoke", "nnUNetTrainerCrossMatch_smoke"]
"""


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_saved_without_outputs():
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code_cells())


def test_it_runs_on_the_toy_dataset(dataset):
    parameters, *cells = ("".join(cell["source"]) for cell in code_cells())
    assigned = {line.split(" = ")[0] for line in parameters.splitlines()}
    assert assigned == {"DATASET", "CONFIGURATION", "PLANS", "FOLD", "DEVICE", "TRAINERS", "PROCESSES"}
    path = os.pathsep.join((str(BIN), os.environ["PATH"]))
    # no file: as in a notebook, new processes have none to import
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([TOY, *cells])],
        cwd=dataset,
        env={**os.environ, "PATH": path},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "4 unlabeled scans are ready" in done.stdout and "nnUNetTrainerCrossMatch_smoke: " in done.stdout
    assert "shell: Dice 0." in done.stdout and "core: Dice 0." in done.stdout
