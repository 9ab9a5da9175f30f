import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.nnunet.logger import PREFIX
from nnunetv2_crossmatch.trainers import nnUNetTrainerACTION_smoke
from nnunetv2_crossmatch.trainers.action import PolyLROfStages
from nnunetv2_crossmatch.trainers.checkpoints import OURS
from tests.trainers.conftest import (
    EAGER,
    SmokePlusPlus,
    annotate_all,
    changed,
    ignore,
    regions,
    residual,
    start,
    weights,
)


class Smoke(changed(nnUNetTrainerACTION_smoke, **EAGER)):
    pass


class EightSteps(Smoke):
    """Two of stage i, two of stage ii, four of stage iii, an epoch each."""

    epochs = 8
    iterations_per_epoch = 1


class EightStepsPlusPlus(EightSteps, SmokePlusPlus):
    constants = SmokePlusPlus.constants
    method_class = SmokePlusPlus.method_class


class NoDeepSupervision(SmokePlusPlus):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False


def curve(trainer, name: str) -> list:
    return trainer.logger.local_logger.my_fantastic_logging[PREFIX + name]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize(("cls", "edit"), [(Smoke, residual), (SmokePlusPlus, ignore), (NoDeepSupervision, residual)])
def test_two_epochs_pass_through_all_stages(make_trainer, dataset, configuration, cls, edit):
    annotate_all(dataset)
    trainer = make_trainer(cls, configuration, edit=edit)
    trainer.run_training()
    for name in ("loss_global", "loss_local", "loss_unsup", "loss_anco", "loss_supervised"):
        assert np.isfinite(curve(trainer, name)).any(), name
    log = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text()
    assert [f"stage {s}:" in log for s in ("i", "ii", "iii")] == [True] * 3
    method = json.loads((Path(trainer.output_folder) / "method.json").read_text())
    assert method["stage_i"] == 0.25 and method["method"] == cls.method_class.__name__


def test_weight_0_everywhere_is_the_supervised_step_exactly(make_trainer):
    class Supervised(Smoke):
        constants = replace(Smoke.constants, lambda_global=0.0, lambda_local=0.0, lambda_unsup=0.0, lambda_anco=0.0)

    stock, ours = (start(make_trainer(cls)) for cls in (nnUNetTrainer, Supervised))
    ours.network.load_state_dict(stock.network.state_dict())
    ours.num_epochs = 1  # the three steps are in stage i, ii and iii
    for _ in range(3):
        batch = next(stock.dataloader_train)
        copy = {"data": batch["data"].clone(), "target": [t.clone() for t in batch["target"]]}
        assert stock.train_step(batch)["loss"] == ours.train_step(copy)["loss"]
    assert all(torch.equal(a, b) for a, b in zip(weights(stock), weights(ours), strict=True))


def test_the_labeled_part_of_stage_iii_is_nnunets_own_forward_and_loss(make_trainer):
    trainer = start(make_trainer(Smoke))
    trainer.method.begin_step(0.9)
    batch = next(trainer.dataloader_train)
    unlabeled = next(trainer.dataloader_unlabeled)
    trainer.dataloader_unlabeled = iter([unlabeled])
    with torch.no_grad():
        expected = trainer.loss(trainer.network(batch["data"]), batch["target"])
        split, method = trainer._split_network, trainer.method
        labeled = trainer._labeled_batch(batch)
        outputs, _ = split.forward_levels(labeled.image)
        assert torch.equal(labeled.loss(outputs), expected)
    values = trainer._method_backward({"supervised": 1.0, **method.weights(0.9)}, labeled)
    assert torch.equal(values["supervised"], expected)


def test_stage_i_moves_the_encoder_alone_and_validates_all_the_same(make_trainer):
    trainer = start(make_trainer(Smoke))
    trainer.num_epochs = 100
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    changed = {name for name, p in trainer.network.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(name.startswith("encoder") for name in changed)
    with torch.no_grad():
        assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])


def test_heads_learn_with_nnunets_optimizer_schedule_and_clipping(make_trainer):
    class Long(Smoke):
        epochs = 100

    trainer = start(make_trainer(Long))
    network, heads = trainer.optimizer.param_groups
    assert len(heads["params"]) == len([p for p in trainer.method.parameters() if p.requires_grad])
    assert {k: v for k, v in network.items() if k != "params"} == {k: v for k, v in heads.items() if k != "params"}
    before = [p.detach().clone() for p in trainer.method.global_head.parameters()]
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert not any(map(torch.equal, before, trainer.method.global_head.parameters()))
    trainer.current_epoch = 70
    trainer.on_train_epoch_start()
    assert network["lr"] == heads["lr"] == pytest.approx(0.01 * 0.6**0.9)


def test_the_learning_rate_restarts_in_each_stage():
    """In four epochs of stage i, two and a half of stage ii and three and a half of stage iii."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    schedule = PolyLROfStages(optimizer, 0.01, 10, replace(Smoke.constants, stage_i=0.4, stage_ii=0.25).stage_done)
    found = [optimizer.param_groups[0]["lr"]]
    for epoch in range(10):
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    left = [1, 1, 0.75, 0.5, 0.25, 1, 1.5 / 2.5, 0.5 / 2.5, 3 / 3.5, 2 / 3.5, 1 / 3.5]
    assert found == pytest.approx([0.01 * share**0.9 for share in left])
    schedule.step(4)  # whatever was before
    assert schedule.get_last_lr() == [0.01]


@pytest.mark.parametrize("cls", [EightSteps, EightStepsPlusPlus])
def test_a_run_stopped_in_the_middle_of_any_stage_goes_on_as_if_it_had_not(make_trainer, cls):
    """The same next step, to the bit: network, optimizer, teacher, heads, banks, queue, centers."""
    first = start(make_trainer(cls))
    batches = [(next(first.dataloader_train), next(first.dataloader_unlabeled)) for _ in range(cls.epochs)]

    def epoch(trainer, number: int) -> None:
        trainer.current_epoch = number
        trainer.on_train_epoch_start()
        labeled, unlabeled = batches[number]
        trainer.dataloader_unlabeled = iter([unlabeled])
        random.seed(number)
        torch.manual_seed(number)
        trainer.train_step({"data": labeled["data"].clone(), "target": [t.clone() for t in labeled["target"]]})

    def state(trainer) -> list[torch.Tensor]:
        momentum = [value["momentum_buffer"] for value in trainer.optimizer.state.values()]
        rates = torch.tensor([group["lr"] for group in trainer.optimizer.param_groups], dtype=torch.float64)
        return [*trainer.network.parameters(), *trainer.method.state_dict().values(), *momentum, rates]

    for done, stage in ((0, "stage i:"), (2, "stage ii:"), (4, "stage iii:"), (5, "stage iii:")):
        for number in range(first.current_epoch + bool(done), done + 1):
            epoch(first, number)
        assert first._stage.startswith(stage)
        checkpoint = str(Path(first.output_folder) / "checkpoint_latest.pth")
        first.save_checkpoint(checkpoint)
        second = make_trainer(cls, seed=1)
        second.load_checkpoint(checkpoint)
        assert second.current_epoch == done + 1
        start(second)
        for trainer in (first, second):
            epoch(trainer, done + 1)
        assert second._stage == first._stage
        assert len(state(second)) == len(state(first)) and all(map(torch.equal, state(second), state(first)))


def test_the_saved_network_is_stock_and_everything_else_lies_beside_it(make_trainer):
    stock, ours = (make_trainer(cls) for cls in (nnUNetTrainer, SmokePlusPlus))
    stock.initialize()
    ours.run_training()
    saved = torch.load(Path(ours.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert saved["network_weights"].keys() == stock.network.state_dict().keys()
    stock.network.load_state_dict(saved["network_weights"])
    beside = {name.split(".")[0] for name in saved[OURS]["state"]}
    assert beside >= {"teacher", "global_head", "local_head", "represent", "global_bank", "queue", "centers", "running"}


def test_stages_are_drawn(make_trainer, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "nnunetv2_crossmatch.trainers.semi_supervised.plot_curves",
        lambda logger, file, classes, stages, *others: drawn.append(stages),
    )
    make_trainer(Smoke).run_training()
    assert drawn[0] == [(0.0, "stage i"), (0.5, "stage ii"), (1.0, "stage iii")]


def test_regions_are_refused_at_once(make_trainer):
    with pytest.raises(RuntimeError, match="Smoke needs classes that exclude each other"):
        make_trainer(Smoke, edit=regions).initialize()


def test_a_gradient_scaler_changes_no_step(make_trainer):
    """What mixed precision on a GPU adds, with a scaler on the CPU, in stage iii."""
    plain, scaled = start(make_trainer(Smoke)), start(make_trainer(Smoke))
    scaled.network.load_state_dict(plain.network.state_dict())
    scaled.method.load_state_dict(plain.method.state_dict())
    scaled.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    labeled, unlabeled = next(plain.dataloader_train), next(plain.dataloader_unlabeled)
    for trainer in (plain, scaled):
        trainer.current_epoch = 1
        trainer.dataloader_unlabeled = iter([unlabeled])
        torch.manual_seed(0)
        trainer.train_step(labeled)
    for ours, theirs in zip(weights(scaled), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert scaled._ratios.pop()["gradient_norm_joint"] == pytest.approx(
        plain._ratios.pop()["gradient_norm_joint"], rel=1e-3
    )
