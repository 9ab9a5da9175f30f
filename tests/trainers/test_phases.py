"""Stock nnU-Net until the network is ready, then half labeled and half unlabeled batches, and back if it does harm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch import trainers
from nnunetv2_crossmatch.nnunet.logger import PREFIX
from nnunetv2_crossmatch.trainers import nnUNetTrainerCrossMatch_smoke
from nnunetv2_crossmatch.trainers.probe import _middle_of
from tests.trainers.conftest import (
    SmokeHalves,
    annotate_all,
    changed,
    ignore,
    regions,
    regions_with_ignore,
    start,
    weights,
)


def ready_from(epoch: int) -> type:
    return type("SmokeHalves", (SmokeHalves,), {"ready_at": epoch})


def log_of(trainer) -> str:
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_phase_a_is_stock_nnunet_to_the_bit(make_trainer, configuration):
    stock = start(make_trainer(nnUNetTrainer, configuration))
    ours = start(make_trainer(changed_without_readiness(), configuration))
    ours.network.load_state_dict(stock.network.state_dict())
    for _ in range(3):
        batch = next(stock.dataloader_train)
        copy = {"data": batch["data"].clone(), "target": [t.clone() for t in batch["target"]]}
        assert stock.train_step(batch)["loss"] == ours.train_step(copy)["loss"]
    assert all(map(torch.equal, weights(stock), weights(ours)))
    assert len(next(ours.dataloader_train)["data"]) == ours.batch_size
    assert not ours.phases.readiness.active


def changed_without_readiness() -> type:
    return type("Smoke", (nnUNetTrainerCrossMatch_smoke,), {"constants": SmokeHalves.constants, "ready_at": None})


@pytest.mark.parametrize(("name", "first"), [("CrossMatch", "nnU-Net"), ("BCP", "pre-training")])
def test_the_picture_names_what_it_waits_with(make_trainer, name, first):
    trainer = make_trainer(f"nnUNetTrainer{name}_smoke", "2d")
    trainer.initialize()
    assert trainer.phases.stages() == [(0.0, first)]
    trainer.phases.readiness.started, trainer.phases.readiness.ended = 1, 2
    assert trainer.phases.stages() == [(0.0, first), (1.0, "self-training"), (2.0, "labeled scans alone")]


@pytest.mark.parametrize("name", ["nnUNetTrainerCrossMatch_smoke", "nnUNetTrainerCrossMatchFromStock_smoke"])
def test_a_smoke_trainer_tries_both_phases(name):
    assert getattr(trainers, name).ready_at == 1


def test_without_weight_it_is_stock_to_the_end(make_trainer):
    weightless = changed(SmokeHalves, weight=0.0)
    trainer = make_trainer(weightless, "2d")
    trainer.run_training()
    assert trainer.phases.readiness.started is None and "Self-training" not in log_of(trainer)
    log = trainer.logger.local_logger.my_fantastic_logging
    assert not {PREFIX + "stability", PREFIX + "loss_joint"} & log.keys()


def test_phase_b_trains_on_half_batches_with_the_averages_labels(make_trainer):
    def two_samples(plans, dataset_json):
        plans["configurations"]["2d"]["batch_size"] = 2

    trainer = make_trainer(ready_from(1), "2d", edit=two_samples)
    trainer.num_epochs, sizes = 3, []
    step = trainer.train_step
    trainer.train_step = lambda batch: sizes.append(len(batch["data"])) or step(batch)
    trainer.run_training()
    assert sizes == [2] * 3 + [1] * 6
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log[PREFIX + "loss_joint"]).tolist() == [False, True, True]
    assert np.isfinite(log[PREFIX + "loss_supervised"]).tolist() == [True, False, False]
    assert "Self-training on the unlabeled scans begins with epoch 1." in log_of(trainer)
    assert len(log[PREFIX + "stability"]) == len(log[PREFIX + "share"]) == 3
    assert not trainer.phases.snapshot.exists()


def test_a_class_that_is_not_ready_is_ignored_until_it_is(make_trainer):
    trainer = start(make_trainer(SmokeHalves, "2d"))
    trainer.phases.readiness.taught = trainer.phases.readiness.names[:1]
    trainer.phases.tell_method()
    assert trainer.method.started == 0 and trainer.method.taught.tolist() == [True, True, False]
    trainer.train_step(next(trainer.dataloader_train))
    assert trainer.method.curves["kept_share"][0][2] == 0
    trainer.on_train_epoch_end([{"loss": np.float32(1)}])
    assert "no unlabeled voxel was confidently core" not in log_of(trainer), "it is left out on purpose"
    trainer.phases.readiness.taught = []
    trainer.phases.tell_method()
    assert not any(trainer.method.weights(0.5).values()), "background alone is not taught"


def test_when_it_does_harm_the_run_goes_back_to_where_it_was(make_trainer):
    trainer = make_trainer(ready_from(1), "2d")
    trainer.num_epochs = 4
    states, original = {}, trainer.on_train_epoch_start

    def state() -> list[torch.Tensor]:
        momentum = [of["momentum_buffer"] for of in trainer.optimizer.state.values()]
        return [value.clone() for value in (*weights(trainer), *trainer.method.state_dict().values(), *momentum)]

    def watch():
        original()
        states[trainer.current_epoch] = state()
        rate = 0.01 * (1 - trainer.current_epoch / 4) ** 0.9
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(rate), "the schedule goes on"

    trainer.on_train_epoch_start = watch
    validate = trainer.on_validation_epoch_end

    def harmed(outputs):
        validate(outputs)
        dice = [0.8, 0.8] if trainer.current_epoch < 1 else [0.1, 0.1]
        trainer.logger.local_logger.my_fantastic_logging["dice_per_class_or_region"][-1] = dice

    trainer.on_validation_epoch_end = harmed
    trainer.run_training()
    assert "Self-training ends: nnU-Net's validation Dice fell by 0.700" in log_of(trainer)
    assert trainer.phases.readiness.started == 1 and trainer.phases.readiness.ended == 2
    assert all(map(torch.equal, states[1], states[2])), "the weights of when it began"
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log[PREFIX + "loss_supervised"]).tolist() == [True, False, True, True]


def test_if_nothing_is_ready_it_stays_supervised_and_says_why(make_trainer):
    trainer = make_trainer(changed_without_readiness(), "2d")
    trainer.num_epochs = 3
    trainer.run_training()
    assert "The unlabeled scans are not used: the network is not sure of most classes." in log_of(trainer)
    assert PREFIX + "loss_joint" not in trainer.logger.local_logger.my_fantastic_logging


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("edit", [regions, ignore, regions_with_ignore])
def test_regions_and_ignore_labels(make_trainer, dataset, configuration, edit):
    annotate_all(dataset)
    trainer = make_trainer(SmokeHalves, configuration, edit=edit)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log[PREFIX + "loss_joint"]).all()
    assert len(log[PREFIX + "share"][0]) == (2 if trainer.label_manager.has_regions else 3)


def test_the_probe_counts_shares_and_agreement_voxel_by_voxel(make_trainer):
    trainer = start(make_trainer(SmokeHalves, "2d"))
    network, average = trainer.network, trainer.method.teacher.network
    with torch.no_grad():
        for p in average.parameters():
            p.add_(0.3 * torch.randn_like(p))
    measured = trainer.phases.measure()
    mine, its = [], []
    for image, of_batch in trainer.phases.probe._batches:
        for sample, counted in zip(image, of_batch, strict=True):
            mine += network(sample[None])[0].argmax(1).flatten()[counted.flatten()].tolist()
            its += average(sample[None])[0].argmax(1).flatten()[counted.flatten()].tolist()
    mine, its = np.array(mine), np.array(its)
    for c in range(3):
        size = (mine == c).sum() + (its == c).sum()
        expected = 2 * ((mine == c) & (its == c)).sum() / size if size else np.nan
        assert measured["stability"][c] == pytest.approx(expected, nan_ok=True, abs=1e-3)
        share = (its == c).mean() / trainer.phases.probe.labeled_share[c]
        assert measured["share"][c] == pytest.approx(share, nan_ok=True, abs=1e-3)


def test_a_slice_is_kept_every_tenth_of_the_training_and_goes_on_with_it(make_trainer):
    trainer = start(make_trainer(SmokeHalves))
    phases = trainer.phases
    trainer.num_epochs = 30
    with torch.no_grad():
        for p in trainer.method.teacher.network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    for trainer.current_epoch in range(5):
        phases.measure()
    assert list(phases.labels) == [0, 3]
    (image, of_batch), *_ = phases.probe._batches
    middle = image.shape[2] // 2
    np.testing.assert_array_equal(phases.probe.slices[0], image[0, 0, middle])
    with torch.no_grad():
        label = trainer.method.teacher.network(image[:1])[0].argmax(1) * of_batch[:1, 0]
    np.testing.assert_array_equal(phases.labels[3][0], label[0, middle])
    assert phases.labels[3].dtype == torch.uint8 and len(phases.labels[3]) == 4
    other = start(make_trainer(SmokeHalves)).phases
    other.load(phases.state())
    assert other.labels.keys() == phases.labels.keys()
    other.measure()  # of epoch 0
    assert other.labels.keys() == phases.labels.keys(), "the same patches"
    other.probe.slices += 1
    other.measure()
    assert other.labels.keys() == {0}, "labels of other scans are not drawn over these"


@pytest.mark.parametrize("shape", [(256, 200), (3, 257, 300), (3, 700, 20)])
def test_slices_of_large_patches_are_small(shape):
    patches = torch.arange(2 * np.prod(shape)).reshape(2, *shape)
    rows, columns = shape[-2:]
    step = {300: 2, 20: 3}.get(columns, 1)
    expected = np.zeros((2, -(-rows // step), -(-columns // step)))
    for index in np.ndindex(expected.shape):
        patch, row, column = index
        expected[index] = patches[(patch, *(1,) * (len(shape) - 2), row * step, column * step)]
    np.testing.assert_array_equal(_middle_of(patches), expected)
