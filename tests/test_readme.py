import inspect

from nnunetv2_crossmatch.methods import fixmatch
from nnunetv2_crossmatch.trainers import METHODS, nnUNetTrainerFixMatch
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def test_the_example_of_a_method_is_the_method():
    assert inspect.getsource(fixmatch) in README
    assert inspect.getsource(nnUNetTrainerFixMatch) in README


def test_every_trainer_has_its_row():
    rows = [line for line in README.splitlines() if line.startswith("| `nnUNetTrainer")]
    for name in METHODS:
        assert sum(line.startswith(f"| `{name}` |") for line in rows) >= 1, name
