"""What every registered trainer keeps, in 2D and 3D."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.methods import SUPERVISED
from nnunetv2_crossmatch.networks.ema import EMATeacher
from nnunetv2_crossmatch.nnunet.logger import PREFIX
from nnunetv2_crossmatch.trainers.checkpoints import OURS, read_checkpoint
from tests.conftest import DATASET
from tests.trainers.conftest import EAGER, ONLINE, changed, start, weights


@pytest.fixture(params=ONLINE)
def cls(request) -> type:
    trainer = recursive_find_trainer_class_by_name(f"{request.param}_smoke")
    return changed(trainer, **EAGER)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_trains_stops_resumes_and_predicts_as_stock_nnunet(dataset, monkeypatch, configuration, cls):
    """Through the function behind nnUNetv2_train; its validation at the end is the end-to-end test's."""
    name, trainers, steps, continued = cls.__name__, [], [], []

    class Watched(cls):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.save_every = 1
            trainers.append(self)

        def train_step(self, batch):
            steps.append(super().train_step(batch)["loss"])
            return {"loss": steps[-1]}

        def load_checkpoint(self, filename_or_checkpoint):
            super().load_checkpoint(filename_or_checkpoint)
            saved = read_checkpoint(Path(filename_or_checkpoint))[OURS]["state"]
            state = self.method.state_dict()
            assert saved.keys() == state.keys()
            continued.append(all(torch.equal(value, state[key]) for key, value in saved.items()))

        def on_epoch_end(self):
            super().on_epoch_end()
            if len(trainers) == 1:
                raise Stopped

        def perform_actual_validation(self, save_probabilities=False):
            pass

    Watched.__name__ = name
    monkeypatch.setattr("nnunetv2.run.run_training.recursive_find_trainer_class_by_name", lambda _: Watched)
    command = ["nnUNetv2_train", DATASET, configuration, "all", "-tr", name, "-p", "nnUNetPlansSmall", "-device", "cpu"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(Stopped):
        run_training_entry()
    monkeypatch.setattr(sys, "argv", [*command, "--c"])
    run_training_entry()

    first, second = trainers
    assert (first.current_epoch, second.current_epoch) == (1, 2)
    assert continued == [True]
    assert len(steps) == 6 and np.isfinite(steps).all()
    assert all(p.isfinite().all() for p in [*second.network.parameters(), *second.method.parameters()])
    logged = second.logger.local_logger.my_fantastic_logging
    for part in (key for key in logged if key.startswith(f"{PREFIX}loss_")):
        assert np.isfinite(logged[part]).any(), part  # a loss of an earlier stage has ended
    method = second.method
    teachers = [module for module in method.modules() if isinstance(module, EMATeacher)]
    assert method.has_teacher == bool(teachers)
    assert all(p.grad is None and not p.requires_grad for teacher in teachers for p in teacher.parameters())
    assert json.loads((Path(second.output_folder) / "method.json").read_text())["method"] == type(method).__name__

    predictions = []
    image = np.random.default_rng(0).normal(size=(1, 1 if configuration == "2d" else 20, 30, 30)).astype(np.float32)
    for trainer_name in (name, "nnUNetTrainer"):
        checkpoint = Path(second.output_folder) / "checkpoint_final.pth"
        content = torch.load(checkpoint, weights_only=False)
        torch.save({**content, "trainer_name": trainer_name}, checkpoint)
        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(Path(second.output_folder).parent), ("all",))
        predictions.append(predictor.predict_single_npy_array(image, {"spacing": [1.0, 1.0, 1.0]}))
    assert np.array_equal(*predictions)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_with_all_weights_0_a_step_is_the_supervised_one(make_trainer, configuration, cls):
    weightless = changed(cls, **{f.name: 0.0 for f in fields(cls.constants) if is_weight(f.name)})
    ours = start(make_trainer(weightless, configuration))
    if ours.method.weights(0.9).get(SUPERVISED) == 0:
        pytest.skip("has no plain supervised term; its file says what takes its place")
    stock = start(make_trainer(nnUNetTrainer, configuration))
    ours.network.load_state_dict(stock.network.state_dict())
    for _ in range(2):
        batch = next(stock.dataloader_train)
        copy = {"data": batch["data"].clone(), "target": [t.clone() for t in batch["target"]]}
        assert stock.train_step(batch)["loss"] == ours.train_step(copy)["loss"]
    assert all(map(torch.equal, weights(stock), weights(ours)))


def test_odd_batches_are_survived(make_trainer, cls):
    """One that is not finite teaches nothing; then one without foreground, and one without a confident voxel."""
    trainer = start(make_trainer(cls, "2d"))
    trainer.current_epoch = 1  # in ACTION's last stage
    take = lambda: (next(trainer.dataloader_train), next(trainer.dataloader_unlabeled))  # noqa: E731

    def step(labeled, unlabeled):
        trainer.dataloader_unlabeled = iter([unlabeled])
        return trainer.train_step(labeled)["loss"]

    batches = [take() for _ in range(4)]
    step(*batches.pop())  # banks are filled
    before = weights(trainer)
    labeled, unlabeled = batches.pop()
    labeled["data"][0, 0, 3, 3] = unlabeled["data"][-1, 0, 3, 3] = np.nan
    assert np.isnan(step(labeled, unlabeled))
    assert all(map(torch.equal, before, weights(trainer)))
    assert all(value.isfinite().all() for value in trainer.method.state_dict().values())
    assert trainer._ratios.pop()["skipped_share"] == 0.5

    labeled, unlabeled = batches.pop()
    for target in labeled["target"]:
        target.zero_()
    assert np.isfinite(step(labeled, unlabeled))
    strict = {name: 1.0 for name in ("threshold", "valid", "confident") if hasattr(trainer.method.constants, name)}
    trainer.method.constants = replace(trainer.method.constants, **strict)
    assert np.isfinite(step(*batches.pop()))
    assert not all(map(torch.equal, before, weights(trainer)))
    assert all(p.isfinite().all() for p in trainer.network.parameters())


def is_weight(name: str) -> bool:
    return name == "weight" or name.startswith("lambda_")


def test_every_method_has_a_weight_that_takes_it_away(cls):
    assert any(is_weight(field.name) for field in fields(cls.constants))
