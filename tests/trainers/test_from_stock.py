"""A stock nnU-Net of two epochs, and CrossMatch that begins where it ended."""

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.trainers import nnUNetTrainerCrossMatchFromStock_smoke
from tests.trainers.conftest import start, weights


@pytest.fixture
def stock(make_trainer):
    trainer = make_trainer(nnUNetTrainer, "2d", fold=0)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 3, 2
    trainer.run_training()
    logged = trainer.logger.local_logger.my_fantastic_logging["dice_per_class_or_region"]
    logged[:] = [[0.9, 0.2]] * len(logged)  # so small a network knows nothing yet
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    validated(trainer, trainer.do_split()[1])
    return trainer


def validated(trainer, cases: list[str]) -> None:
    summary = Path(trainer.output_folder) / "validation" / "summary.json"
    summary.parent.mkdir(exist_ok=True)
    per_case = [{"prediction_file": f"somewhere/{case}.nii.gz"} for case in cases]
    summary.write_text(json.dumps({"metric_per_case": per_case}))


def test_it_begins_with_the_network_and_teaches_the_classes_it_knew(make_trainer, stock):
    trainer = make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0)
    trainer.initialize()
    object.__setattr__(trainer.phases.readiness.thresholds, "share", float("inf"))
    start(trainer)
    assert all(map(torch.equal, weights(stock), weights(trainer)))
    assert all(map(torch.equal, weights(stock), [p.detach() for p in trainer.method.teacher.parameters()]))
    first, second = trainer.phases.readiness.names
    assert trainer.phases.readiness.started == 0 and trainer.phases.readiness.taught == [first]
    assert trainer.phases.readiness.levels == {first: pytest.approx(0.9)}
    assert f"{second}: not taught from unlabeled scans yet, validation Dice 0.20." in Path(trainer.log_file).read_text()
    assert trainer.method.weights(0.0)["joint"] == 1 and trainer.phases.snapshot.exists()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_it_trains_to_the_end_and_is_continued_without_the_stock_model(make_trainer, stock):
    trainer = make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0)
    trainer.save_every = 1
    trainer.on_train_end = lambda: None
    trainer.num_epochs = 3
    trainer.run_training()
    (Path(stock.output_folder) / "checkpoint_final.pth").unlink()
    again = make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0)
    again.num_epochs = 4
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    again.run_training()
    assert (Path(again.output_folder) / "checkpoint_final.pth").exists() and not again.phases.snapshot.exists()


def test_without_a_stock_model_it_says_what_to_train(make_trainer):
    trainer = make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0)
    with pytest.raises(RuntimeError, match="Train it first: nnUNetv2_train Dataset901_Balls 2d 0 -tr nnUNetTrainer "):
        trainer.on_train_start()


def test_another_split_or_network_is_refused(make_trainer, stock):
    validated(stock, [*stock.do_split()[1], "case9"])
    with pytest.raises(RuntimeError, match=r"another split: 1 cases .*case9"):
        make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0).on_train_start()
    validated(stock, stock.do_split()[1])

    def wider(plans, dataset_json):
        kwargs = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        kwargs["features_per_stage"] = [2 * count for count in kwargs["features_per_stage"]]

    with pytest.raises(RuntimeError, match="another network than these plans make"):
        make_trainer(nnUNetTrainerCrossMatchFromStock_smoke, "2d", fold=0, edit=wider).on_train_start()
