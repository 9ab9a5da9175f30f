"""Hours and memory of a training that was not done: from few steps, on a clock that the test turns."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.trainers import estimate
from nnunetv2_crossmatch.trainers.estimate import Cost
from tests.conftest import DATASET


class FakeTrainer:
    """A step takes two seconds, the first one a hundred, a validation step one, and the rest of an epoch five."""

    num_iterations_per_epoch, num_val_iterations_per_epoch = 250, 50

    def __init__(self, clock):
        self.clock, self.steps = clock, 0
        self.dataloader_train = self.dataloader_val = iter(lambda: {}, None)

    def on_epoch_start(self):
        self.clock.now += 5

    def nothing(self, *_):
        pass

    on_train_epoch_start = on_train_epoch_end = on_validation_epoch_start = on_validation_epoch_end = nothing
    on_epoch_end = nothing

    def train_step(self, batch):
        self.steps += 1
        self.clock.now += 100 if self.steps == 1 else 2
        return {}

    def validation_step(self, batch):
        self.clock.now += 1
        return {}


def test_an_epoch_is_that_many_steps_and_the_first_ones_do_not_count(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    trainer = FakeTrainer(clock)
    assert estimate._epoch_seconds(trainer, 10.0) == (250 * 2 + 50 * 1 + 5, 1)
    assert trainer.steps == 1 + 10 / 2
    monkeypatch.setattr(trainer, "num_iterations_per_epoch", 2)
    assert estimate._epoch_seconds(trainer, 1000.0)[0] == 2 * 2 + 50 * 1 + 5


@pytest.mark.parametrize(
    ("shape", "patch"), [((40, 50, 60), (16, 24, 24)), ((8, 50, 60), (16, 24, 24)), ((7, 50, 60), (24, 24))]
)
def test_windows_are_nnunets(shape, patch):
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.configuration_manager = SimpleNamespace(patch_size=patch)
    padded = [max(size, window) for size, window in zip(shape[::-1], patch[::-1], strict=False)][::-1]
    padded = (*shape[: 3 - len(padded)], *padded)
    assert estimate._windows(shape, patch) == len(predictor._internal_get_sliding_window_slicers(padded))


def test_hours_count_every_epoch_and_the_validation():
    cost = Cost(
        "nnUNetTrainer", epochs=100, epoch_seconds=(36.0, 72.0), validation_seconds=360.0, peak_memory=None, folds=5
    )
    assert cost.hours() == (1.1, 2.1)
    assert cost.hours("all") == (1.5, 2.5)  # the held-out cases of all folds


def test_the_command_takes_steps_of_both_phases_and_leaves_nothing(dataset, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "SECONDS", 0)
    monkeypatch.setattr(estimate, "ProcessPoolExecutor", lambda count, context: ThreadPoolExecutor(count))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    before = {file for file in dataset.rglob("*") if file.is_file()}
    monkeypatch.setenv("nnUNet_results", str(dataset / "results"))  # put back: a thread is no process of its own
    phases, epoch = [], estimate._epoch_seconds

    def seen(trainer, seconds):
        result = epoch(trainer, seconds)
        losses = [name for name in trainer.logger.local_logger.my_fantastic_logging if "loss_joint" in name]
        values = [trainer.logger.get_value(name, step=-1) for name in losses]
        phases.append((type(trainer).__name__, bool(values) and bool(np.isfinite(values[0]) and values[0])))
        return result

    monkeypatch.setattr(estimate, "_epoch_seconds", seen)
    default, from_stock = "nnUNetTrainerCrossMatch", "nnUNetTrainerCrossMatchFromStock"
    line = f"estimate -d 901 -c 3d_fullres -p nnUNetPlansSmall -device cpu -tr {default} {from_stock}"
    main(line.split())
    assert phases == [
        *[("nnUNetTrainer", False)] * 2,
        *[(default, False), (default, False), (default, True)],
        *[(from_stock, False), (from_stock, True)],
    ]
    out = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in out[1:4]] == ["nnUNetTrainer", default, from_stock]
    assert ["1000" in out[1], "750" in out[2], "250" in out[3]] == [True] * 3
    assert "4 unlabeled scans are not preprocessed yet, so labeled ones stood for them: about 0." in out[-2]
    assert out[-1] == f"Next: nnUNetv2_crossmatch preprocess -d {DATASET} -c 3d_fullres -p nnUNetPlansSmall"
    assert {file for file in dataset.rglob("*") if file.is_file()} == before
