"""What the log says of the time ahead; no trainer is started for it."""

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch import trainers
from nnunetv2_crossmatch.trainers import unlabeled_cases
from nnunetv2_crossmatch.trainers.readiness import Readiness


def make(name: str, epochs: int, waits: bool = True, at: int | None = None):
    cls = getattr(trainers, name)
    trainer = cls.__new__(cls)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, 250
    trainer.phases = SimpleNamespace(exist=waits, readiness=Readiness(["liver"], at))
    return trainer


def begins_with(readiness: Readiness, epochs: int, first: int) -> int | None:
    """The epoch with which a class that is known from ``first`` on is taught."""
    for epoch in range(epochs):
        curves = {key: np.ones((epoch, 1)) for key in ("dice", "stability", "share")}
        curves["stability"][:first] = 0
        readiness.update(epoch, epochs, curves)
        if readiness.started is not None:
            return epoch
    return None


@pytest.mark.parametrize("epochs", [750, 50, 12, 4])
def test_when_self_training_may_begin_is_when_it_does(epochs):
    said = make("nnUNetTrainerCrossMatch", epochs)._outlook()
    first = begins_with(Readiness(["liver"]), epochs, 0)
    last = max(begins_with(Readiness(["liver"]), epochs, known) or 0 for known in range(epochs))
    assert f"may begin with epoch {first}, with epoch {last} at the latest; a step of it costs 1.17" in said


def test_every_kind_of_trainer_says_what_it_does():
    assert make("nnUNetTrainerCPS_50epochs", 50, waits=False)._outlook() == (
        "50 epochs of 250 steps; a step costs 4.33 of nnU-Net's in FLOPs."
    )
    assert make("nnUNetTrainerCrossMatchFromStock", 250)._outlook() == (
        "250 epochs of 250 steps of self-training; a step costs 1.17 of nnU-Net's in FLOPs."
    )
    assert "may begin with epoch 1, " in make("nnUNetTrainerCrossMatch_smoke", 2, at=1)._outlook()


def test_the_hours_are_those_of_plain_nnunet_times_the_cost_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    trainer = make("nnUNetTrainerCrossMatch", 600)
    of = {"dataset": SimpleNamespace(name="Dataset001_A"), "plans": SimpleNamespace(plans_name="nnUNetPlans")}
    trainer.planned = SimpleNamespace(**of, configuration_name="2d", command=lambda name: name)
    assert trainer._hours() == "How many hours: estimate -tr nnUNetTrainerCrossMatch measures it."
    stock = tmp_path / "Dataset001_A" / "nnUNetTrainer__nnUNetPlans__2d"
    (stock / "fold_3").mkdir(parents=True)
    line = "2026-01-01 00:00:00.0: "
    log = f"{line}Epoch 0 \n{line}Epoch time: 50.0 s\n{line}Epoch 1 \n{line}Epoch time: 70.0 s\n"
    (stock / "fold_3" / "training_log_2026_1_1_0_0_0.txt").write_text(log)
    assert (
        trainer._hours() == f"About 10 h 0 min to 11 h 42 min, if an epoch of plain nnU-Net takes 60 s as in {stock}."
    )
    trainer.phases.exist, trainer.num_iterations_per_epoch = False, 125
    assert trainer._hours().startswith("About 5 h 51 min, if an epoch of plain nnU-Net takes 30 s")


def test_the_time_left_is_the_median_epoch_times_those_to_come(monkeypatch, tmp_path):
    clock = iter([0, 90, 100, 110, 120])  # the first epoch starts everything
    monkeypatch.setattr(unlabeled_cases, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(unlabeled_cases, "record_resources", lambda *_: None)
    for name in ("on_epoch_start", "on_epoch_end"):
        monkeypatch.setattr(nnUNetTrainer, name, lambda trainer: None)
    trainer, said = make("nnUNetTrainerPseudoLabel", 500), []
    trainer.__dict__ |= {"_seed": 0, "local_rank": 0, "device": None, "output_folder": tmp_path}
    trainer.__dict__ |= {"_started": deque(maxlen=6), "print_to_log_file": said.append}
    for epoch in range(5):
        trainer.current_epoch = epoch
        trainer.on_epoch_start()
        trainer.current_epoch = 500 if epoch == 4 else epoch + 1
        trainer.on_epoch_end()
    # two epochs: their mean; then 10 s each
    assert said == ["about 6 h 54 min left", "about 1 h 23 min left"], "none after the last epoch"
