import pickle
import subprocess
import sys

import nnunetv2
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.trainers import METHODS
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("variant", ["", "_1epoch", "_37epochs", "_smoke"])
def test_nnunet_finds_every_trainer_and_variant_by_name(name, variant):
    trainer = recursive_find_trainer_class_by_name(name + variant)
    assert issubclass(trainer, nnUNetTrainer) and trainer.__name__ == name + variant
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    if variant == "_37epochs":
        assert trainer.epochs == 37
    if variant == "_smoke":
        assert trainer.epochs * trainer.iterations_per_epoch < 10


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerCrossMatch_0epochs",
        "nnUNetTrainerCrossMatch_epochs",
        "nnUNetTrainerCrossMatchX",
        "nnUNetTrainerSemiSupervised",
    ],
)
def test_other_names_are_not_found(name):
    with pytest.raises(RuntimeError, match=f"Could not find requested nnunet trainer {name}"):
        recursive_find_trainer_class_by_name(name)


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainer_5epochs", "nnUNetTrainerNoMirroring"])
def test_stock_trainers_stay_stock(name):
    assert recursive_find_trainer_class_by_name(name).__module__.startswith("nnunetv2.training")


def test_a_variant_unpickles_in_a_fresh_process():
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch_123epochs")
    code = f"import pickle; assert pickle.loads({pickle.dumps(trainer)!r}).epochs == 123"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_looking_up_a_stock_trainer_imports_none_of_our_methods():
    code = (
        "import sys; from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
        "find('nnUNetTrainer_5epochs'); assert 'nnunetv2_crossmatch.methods' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_external_folder_with_one_file_serves_an_nnunet_without_our_module(tmp_path, monkeypatch):
    """What a cloned, editable nnU-Net needs: nnUNet_extTrainer names a folder with the README's one line."""
    line = "from nnunetv2_crossmatch.trainers import __getattr__"
    assert line in (REPOSITORY / "nnunetv2_crossmatch" / "preprocessing" / "README.md").read_text()
    (tmp_path / "crossmatch.py").write_text(line)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    bare = tmp_path / "bare"  # an nnU-Net trainer folder without our module in it
    bare.mkdir()
    monkeypatch.setattr("nnunetv2.utilities.find_objects.join", lambda *parts: str(bare))
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch_smoke")
    assert trainer.__module__ == "nnunetv2_crossmatch.trainers"
    assert nnunetv2.__path__


def test_the_readmes_subclass_is_found_in_an_external_folder(tmp_path, monkeypatch):
    readme = (REPOSITORY / "nnunetv2_crossmatch" / "methods" / "README.md").read_text()
    snippet = next(block for block in readme.split("```python")[1:] if "class " in block).split("```")[0]
    (tmp_path / "mine.py").write_text(snippet)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatchSure")
    assert trainer.constants.threshold == 0.99
    assert trainer.epochs == recursive_find_trainer_class_by_name("nnUNetTrainerCrossMatch").epochs


def test_without_this_package_the_registration_that_is_left_hides_no_stock_trainer():
    code = (
        "import sys; sys.modules['nnunetv2_crossmatch.trainers'] = None\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "find('nnUNetTrainer_5epochs')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ours_are_found_where_timm_cannot_be_imported():
    """As with a CPU build of torch and a torchvision for CUDA; nnU-Net's look-up stops at its Primus trainers then."""
    code = (
        "import sys; sys.modules['timm'] = None\n"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
        "find('nnUNetTrainerCrossMatch_smoke')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
