"""Names that nnU-Net gives, held against nnU-Net."""

from pathlib import Path

import pytest
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_crossmatch.nnunet.run_folder import FINAL, Progress, RunFolder
from nnunetv2_crossmatch.trainers import nnUNetTrainerCrossMatch_smoke
from tests.conftest import DATASET, ON_DEVICE
from tests.nnunet.conftest import epoch, write_log

OF = ("nnUNetTrainerCrossMatch_5epochs", "nnUNetPlansSmall", "3d_fullres")


@pytest.mark.parametrize("fold", [0, 12, "all"])
def test_the_folder_is_nnunets_and_can_be_read_back(dataset, fold):
    run = RunFolder.of(DATASET, *OF, fold)
    assert run.path == Path(get_output_folder(DATASET, *OF, fold))
    assert (run.dataset, run.trainer, run.plans, run.configuration, run.fold) == (DATASET, *OF, fold)
    command = f"nnUNetv2_train {DATASET} 3d_fullres {fold} -tr nnUNetTrainerCrossMatch_5epochs -p nnUNetPlansSmall --c"
    assert run.train_command("--c", "cuda") == command  # nnU-Net's default
    assert run.train_command("--c", "mps") == f"{command} -device mps"
    assert run.train_command("--c") == f"{command}{ON_DEVICE}"


def test_progress_and_how_it_goes_on(tmp_path):
    run = RunFolder(tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    assert run.progress() == Progress(None, None, None) and run.progress().left is None
    write_log(run.path, "2026_1_1_1_1_1", *epoch(0, 0.1, 10.0), *epoch(1, 0.1, 30.0), "Epoch 2")
    (run.path / "debug.json").write_text('{"num_epochs": "5"}')
    assert run.progress() == Progress(epoch=3, epochs=5, seconds=20.0, elapsed=40.0) and run.progress().left == 60
    options = {"": "", "checkpoint_best.pth": " --c", FINAL: " --val"}
    for file, option in options.items():
        if file:
            (run.path / file).touch()
        assert run.go_on_command("cuda") == f"nnUNetv2_train {DATASET} 2d 0 -tr nnUNetTrainer -p nnUNetPlans{option}"


def test_what_is_left_is_known_while_an_epoch_is_trained_again(tmp_path):
    run = RunFolder(tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    write_log(run.path, "2026_1_1_1_1_1", *epoch(0, 0.1, 10.0), *epoch(1, 0.1, 30.0), "Epoch 1")
    (run.path / "debug.json").write_text('{"num_epochs": "5"}')
    assert run.left_to_train() == 50


class OneEpoch(nnUNetTrainerCrossMatch_smoke):
    epochs = 1
    iterations_per_epoch = val_iterations_per_epoch = 1

    def on_train_epoch_start(self):
        assert RunFolder(Path(self.output_folder)).planned_epochs == 1, "is read while the training runs"
        super().on_train_epoch_start()


def test_a_training_leaves_what_is_looked_for(make_trainer):
    trainer = make_trainer(OneEpoch, fold=0)
    run = RunFolder(Path(trainer.output_folder))
    assert (run.planned_epochs, run.is_trained, run.is_validated, run.checkpoints) == (None, False, False, [])
    trainer.run_training()
    assert run.is_trained and run.checkpoint() in run.checkpoints and run.checkpoint().name == FINAL
    trainer.perform_actual_validation()
    assert run.is_done

    log, logged = run.log(), trainer.logger.get_value
    assert log.split == tuple(map(len, trainer.do_split())) == (4, 1)
    assert log.curve("train_loss") == ([0], pytest.approx(logged("train_losses", step=None), abs=1e-4))
    assert log.curve("val_loss") == ([0], pytest.approx(logged("val_losses", step=None), abs=1e-4))
    assert log.curve("dice") == ([0], pytest.approx(logged("mean_fg_dice", step=None), abs=1e-4))
    took = logged("epoch_end_timestamps", step=0) - logged("epoch_start_timestamps", step=0)
    assert 3600 * log.hours == pytest.approx(took, abs=0.02)
    assert log.curve("unlabeled/loss_supervised")[0] == [0]
