import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.nnunet.logger import PREFIX
from nnunetv2_crossmatch.nnunet.training_log import TrainingLog
from nnunetv2_crossmatch.trainers import semi_supervised, unlabeled_cases
from nnunetv2_crossmatch.trainers.curves import plot_curves
from tests import warm
from tests.trainers.conftest import (
    Smoke,
    SmokeEMA,
    annotate_all,
    ignore,
    regions,
    regions_with_ignore,
    residual,
    start,
    weights,
)


class Supervised(Smoke):
    constants = replace(Smoke.constants, lambda_ip=0.0, lambda_kd=0.0)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_lambda_zero_is_the_supervised_step_exactly(make_trainer, configuration):
    stock, ours = (start(make_trainer(cls, configuration)) for cls in (nnUNetTrainer, Supervised))
    ours.network.load_state_dict(stock.network.state_dict())
    for _ in range(3):
        batch = next(stock.dataloader_train)
        copy = {"data": batch["data"].clone(), "target": [t.clone() for t in batch["target"]]}
        assert stock.train_step(batch)["loss"] == ours.train_step(copy)["loss"]
    assert all(torch.equal(a, b) for a, b in zip(weights(stock), weights(ours), strict=True))


def test_a_network_that_does_not_fit_is_told_how_to_plan_a_smaller_one(make_trainer, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    trainer = make_trainer(Smoke)
    monkeypatch.setattr(type(trainer), "train_step", full)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * 2**30))
    with pytest.raises(RuntimeError, match="does not fit") as e:
        trainer.run_training()
    assert isinstance(e.value.__cause__, torch.cuda.OutOfMemoryError)
    assert "nnUNetv2_plan_experiment -d 901 -pl ExperimentPlanner -gpu_memory_target 16 " in str(e.value)


def test_unlabeled_gradients_are_added_to_the_supervised_ones(make_trainer):
    ours, supervised = (start(make_trainer(cls)) for cls in (Smoke, Supervised))
    supervised.network.load_state_dict(ours.network.state_dict())
    batch = next(ours.dataloader_train)
    for trainer in (ours, supervised):
        trainer.train_step({"data": batch["data"].clone(), "target": [t.clone() for t in batch["target"]]})
    assert not all(torch.equal(a, b) for a, b in zip(weights(ours), weights(supervised), strict=True))
    with_unlabeled, without = ours._ratios.pop(), supervised._ratios.pop()
    assert with_unlabeled["gradient_norm_labeled"] == pytest.approx(without["gradient_norm_labeled"], rel=1e-5)
    assert with_unlabeled["gradient_norm_unlabeled"] > 0
    assert "gradient_norm_unlabeled" not in without


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_unlabeled_batches_have_the_labeled_geometry(make_trainer, configuration):
    trainer = start(make_trainer(Smoke, configuration))
    labeled, unlabeled = next(trainer.dataloader_train), next(trainer.dataloader_unlabeled)
    assert unlabeled["data"].shape == labeled["data"].shape
    assert unlabeled["target"].shape == (len(labeled["data"]), 1, *labeled["data"].shape[2:])
    assert all(key.startswith("scan") for key in unlabeled["keys"])
    assert all(key.startswith("case") for key in labeled["keys"])


def test_padded_voxels_are_marked_whatever_the_geometry_does(make_trainer):
    def larger_patch(plans, dataset_json):
        plans["configurations"]["3d_fullres"]["patch_size"] = [32, 32, 32]  # scans are 16 x 24 x 24

    trainer = start(make_trainer(Smoke, edit=larger_patch))
    for _ in range(20):
        batch = next(trainer.dataloader_unlabeled)
        valid = batch["target"] >= 0
        assert 0 < valid.float().mean() < 0.7
        assert (batch["data"][~valid] == 0).float().mean() > 0.8  # linear interpolation blurs the border


def test_curves_are_logged_every_epoch_and_drawn(make_trainer, monkeypatch):
    monkeypatch.setattr(LocalLogger, "plot_progress_png", warm.plot_progress_png)
    monkeypatch.setattr(semi_supervised, "plot_curves", plot_curves)
    trainer = make_trainer(Smoke)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    curves = {key.removeprefix(PREFIX) for key in log if key.startswith(PREFIX)}
    assert curves == {
        "loss_supervised",
        "loss_ip",
        "loss_tkd",
        "loss_dkd",
        "kept_share",
        "gradient_norm_labeled",
        "gradient_norm_unlabeled",
        "clipped_share",
        "skipped_share",
        "agreement_dropout_weak",
        "agreement_dropout_strong",
        "agreement_strong_view",
        "agreement_strong_view_dropout",
    }
    assert {len(values) for values in log.values()} == {2}
    assert len(log[PREFIX + "kept_share"][0]) == 3
    output = Path(trainer.output_folder)
    for picture in ("progress.png", "progress_unlabeled.png"):
        assert (output / picture).stat().st_size > 10_000
    read = TrainingLog.read(output)  # as the comparison has them
    for name in ("loss_ip", "agreement_strong_view"):
        assert read.curve(PREFIX + name)[1] == pytest.approx(log[PREFIX + name], rel=1e-4)
    assert "changed image (ip) " in Path(trainer.log_file).read_text()
    method = json.loads((output / "method.json").read_text())
    assert method["method"] == "CrossMatchPaper" and method["eta"] == 0.3


def test_the_end_of_the_log_says_how_much_the_unlabeled_losses_pull(make_trainer):
    trainer = make_trainer(Smoke)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    ours, theirs = (log[f"{PREFIX}gradient_norm_{part}"] for part in ("unlabeled", "labeled"))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    said = f"own loss: {sum(ratios) / 2:.2g} on average, {ratios[1]:.2g} in the last epoch."
    assert said in Path(trainer.log_file).read_text()


def test_a_step_begins_without_the_curves_of_the_one_before(make_trainer):
    """Even of a method whose ``begin_step`` does not call the base class's."""

    class Own(Smoke.method_class):
        def begin_step(self, progress):
            pass

        def losses(self, network, unlabeled, labeled=None):
            self.curves.setdefault("steps", (torch.zeros(()), torch.ones(())))[0].add_(1)
            yield from super().losses(network, unlabeled, labeled)

    trainer = start(make_trainer(type("Own", (Smoke,), {"method_class": Own})))
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert trainer._ratios.pop()["steps"] == 1


def test_the_average_follows_through_the_warm_up(make_trainer):
    """Exactly, and also where the unlabeled losses have weight 0 and their part of the step is left out."""

    class Late(SmokeEMA):
        constants = replace(SmokeEMA.constants, warmup=0.5, ema_decay=0.6)

    trainer = start(make_trainer(Late))
    expected, acts = None, []
    for epoch in range(2):
        trainer.current_epoch, trainer._step_in_epoch = epoch, 0
        for step in range(trainer.num_iterations_per_epoch):
            trainer.train_step(next(trainer.dataloader_train))
            acts.append(any(trainer.method.weights(trainer.method.progress).values()))
            decay = min(1 - 1 / (epoch * trainer.num_iterations_per_epoch + step + 1), 0.6)
            now = weights(trainer)
            expected = [decay * old + (1 - decay) * new for old, new in zip(expected or now, now, strict=True)]
            for mine, theirs in zip(expected, trainer.method.teacher.network.parameters(), strict=True):
                torch.testing.assert_close(mine, theirs.detach())
    assert acts == [False] * 3 + [True] * 3


def test_warm_up_leaves_gaps_in_the_curves_that_the_picture_survives(make_trainer):
    class Late(SmokeEMA):
        constants = replace(SmokeEMA.constants, warmup=0.5)

    trainer = make_trainer(Late)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isnan(log[PREFIX + "loss_consistency"][0]) and log[PREFIX + "loss_consistency"][1] > 0
    assert not np.isnan(log[PREFIX + "loss_supervised"]).any()


@pytest.mark.parametrize(("cls", "loss"), [(Smoke, "loss_ip"), (SmokeEMA, "loss_consistency")])
def test_a_run_is_continued_where_it_stopped(make_trainer, cls, loss):
    first = make_trainer(cls)
    first.save_every = 1
    first.num_epochs = 3
    first.on_train_end = lambda: None
    first.run_training()
    latest = Path(first.output_folder) / "checkpoint_latest.pth"
    second = make_trainer(cls, seed=1)
    second.num_epochs = 3
    second.load_checkpoint(str(latest))
    assert second.current_epoch == 2
    on_disk = torch.load(latest, weights_only=False)
    for name, value in second.network.state_dict().items():
        assert torch.equal(value, on_disk["network_weights"][name])
    assert len(second.logger.local_logger.my_fantastic_logging[PREFIX + loss]) == 2
    if cls is SmokeEMA:
        teacher = second.method.teacher
        assert teacher.updates == 2 * second.num_iterations_per_epoch
        assert any(
            not torch.equal(a, b)
            for a, b in zip(teacher.network.parameters(), second.network.parameters(), strict=True)
        )
    second.run_training()
    assert len(second.logger.local_logger.my_fantastic_logging[PREFIX + loss]) == 3
    assert (Path(first.output_folder) / "checkpoint_final.pth").exists()
    assert not list(Path(first.output_folder).glob("*.tmp"))


def test_network_weights_have_the_stock_keys(make_trainer):
    stock, ours = (make_trainer(cls) for cls in (nnUNetTrainer, SmokeEMA))
    stock.initialize()
    ours.initialize()
    ours.save_checkpoint(str(Path(ours.output_folder) / "x.pth"))
    saved = torch.load(Path(ours.output_folder) / "x.pth", weights_only=False)
    assert saved["network_weights"].keys() == stock.network.state_dict().keys()


def test_a_training_that_only_skips_ends_with_a_message(make_trainer, monkeypatch):
    monkeypatch.setattr(unlabeled_cases, "MAX_SKIPPED", 3)
    trainer = start(make_trainer(Smoke))
    broken, whole = next(trainer.dataloader_train), next(trainer.dataloader_train)
    broken["data"][0, 0, 0, 0, 0] = np.inf
    for batch in (broken, broken, whole, broken, broken):
        trainer.train_step(batch)
    with pytest.raises(RuntimeError, match="The gradients of 3 steps in a row were not finite"):
        trainer.train_step(broken)


def test_an_overflow_in_mixed_precision_is_skipped_and_the_scale_lowered(make_trainer):
    trainer = start(make_trainer(Smoke))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    next(trainer.network.parameters()).register_hook(lambda gradient: gradient * np.inf)
    before = weights(trainer)
    trainer.train_step(next(trainer.dataloader_train))
    assert all(map(torch.equal, before, weights(trainer)))
    assert trainer.grad_scaler.get_scale() == 512
    assert trainer._ratios.pop()["skipped_share"] == 1


def test_classes_that_no_pseudo_label_has_are_named(make_trainer):
    trainer = start(make_trainer(Smoke))

    def say(kept: list[float]) -> str:
        trainer._ratios.add({"kept_share": (torch.tensor(kept), torch.tensor([9.0, 9.0, 0.0]))}, torch.device("cpu"))
        trainer.on_train_epoch_end([{"loss": np.float32(1)}])
        return Path(trainer.log_file).read_text().splitlines()[-1]

    assert "warning" not in Path(trainer.log_file).read_text()
    assert "confidently core in this epoch. If that lasts" in say([9.0, 1.0, 0.0])
    assert "confidently shell or core in this epoch, so the unlabeled scans teach no foreground" in say([9.0, 0.0, 0.0])


class NoDeepSupervision(Smoke):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    ("cls", "edit"),
    [
        (SmokeEMA, residual),
        (Smoke, regions),
        (Smoke, ignore),
        (NoDeepSupervision, residual),
        (NoDeepSupervision, regions_with_ignore),
    ],
)
def test_breadth(make_trainer, dataset, configuration, cls, edit):
    annotate_all(dataset)
    trainer = make_trainer(cls, configuration, edit=edit)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    loss = "loss_consistency" if issubclass(cls, SmokeEMA) else "loss_ip"
    assert np.isfinite(log[PREFIX + loss] + log[PREFIX + "loss_supervised"]).all()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").exists()


def test_a_cascade_is_refused_at_once(make_trainer):
    def cascade(plans, dataset_json):
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}

    with pytest.raises(RuntimeError, match="cannot train the second stage of a cascade"):
        make_trainer(Smoke, "3d_cascade_fullres", edit=cascade)


def test_a_network_without_encoder_and_decoder_is_refused_at_once(make_trainer, dataset):
    class Transformer(Smoke):
        @staticmethod
        def build_network_architecture(*args, **kwargs):
            return torch.nn.Conv3d(1, 3, 1)

    with pytest.raises(TypeError, match="Conv3d has no encoder and decoder"):
        make_trainer(Transformer).on_train_start()
    assert not list(dataset.glob("preprocessed/*/*_unlabeled"))


def test_one_labeled_patient_recommends_fold_all(make_trainer, dataset):
    raw = dataset / "raw" / "Dataset901_Balls"
    (raw / "patients.json").write_text(json.dumps({f"case{i}": "same" for i in range(5)}))
    with pytest.raises(ValueError, match="Train fold all"):
        make_trainer(Smoke, fold=0).on_train_start()
    make_trainer(Smoke, fold="all").on_train_start()


def test_unlabeled_scans_of_validation_patients_are_left_out(make_trainer, dataset):
    patients = {"case0": "a", "scan0": "a", "case1": "b", "scan1": "b", "scan2": "c"}
    (dataset / "raw" / "Dataset901_Balls" / "patients.json").write_text(json.dumps(patients))
    trainer = start(make_trainer(Smoke, fold=0))
    val = json.loads((dataset / "preprocessed" / "Dataset901_Balls" / "splits_final.json").read_text())[0]["val"]
    held_out = {patients.get(case) for case in val} - {None}
    expected = [f"scan{i}" for i in range(4) if patients.get(f"scan{i}") not in held_out]
    assert trainer.dataloader_unlabeled.data_loader.indices == expected
    assert ("case0" in val) != ("scan0" in expected)
    everyones = {f"{kind}{i}": f"p{i % 2}" for kind, count in (("case", 5), ("scan", 4)) for i in range(count)}
    everyones |= {f"scan{i}": everyones[val[0]] for i in range(4)}
    (dataset / "raw" / "Dataset901_Balls" / "patients.json").write_text(json.dumps(everyones))
    (dataset / "preprocessed" / "Dataset901_Balls" / "splits_final.json").unlink()
    with pytest.raises(ValueError, match="Every unlabeled scan"):
        for fold in range(2):
            make_trainer(Smoke, fold=fold).on_train_start()


def test_loader_workers_share_nnunets_budget(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    trainer = start(make_trainer(Smoke))
    assert trainer.dataloader_train.num_processes == 1
    assert trainer.dataloader_unlabeled.num_processes == 1
    assert os.environ["nnUNet_n_proc_DA"] == "2"
    trainer.train_step(next(trainer.dataloader_train))
    for augmenter in (trainer.dataloader_train, trainer.dataloader_val, trainer.dataloader_unlabeled):
        augmenter._finish()


def test_a_gradient_scaler_changes_neither_the_step_nor_the_curves(make_trainer):
    """What mixed precision on a GPU adds, with a scaler on the CPU."""
    plain, scaled = start(make_trainer(Smoke)), start(make_trainer(Smoke))
    scaled.network.load_state_dict(plain.network.state_dict())
    scaled.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    labeled, unlabeled = next(plain.dataloader_train), next(plain.dataloader_unlabeled)
    for trainer in (plain, scaled):
        trainer.dataloader_unlabeled = iter([unlabeled])
        torch.manual_seed(0)
        trainer.train_step(labeled)
    for ours, theirs in zip(weights(scaled), weights(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    ours, theirs = scaled._ratios.pop(), plain._ratios.pop()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, err_msg=name)


def test_compilation_reaches_both_halves_and_changes_no_key(make_trainer, monkeypatch):
    stock = make_trainer(nnUNetTrainer)
    stock.initialize()
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    ours = make_trainer(Smoke)
    ours.initialize()  # compilation itself happens at the first call
    network = ours._plain_network
    assert network.encoder._compiled_call_impl is not None
    assert network.decoder._compiled_call_impl is not None
    assert network.state_dict().keys() == stock.network.state_dict().keys()
