import json
import os
import shutil
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.self_training.rounds import leave_out
from nnunetv2_crossmatch.trainers import unlabeled_cases
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import sha256_of
from tests.conftest import DATASET, write_image
from tests.trainers.conftest import write_labels
from tests.trainers.processes import assert_same_on_both, finish, start

SMOKE = "nnUNetTrainerPseudoLabel_smoke"


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("regions", [False, True])
def test_trains_a_stock_model(dataset, make_trainer, configuration, regions):
    changes = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    write_labels(dataset, configuration, **(changes if regions else {}))
    trainer = make_trainer(SMOKE, configuration, fold=0)
    trainer.run_training()
    trainer.perform_actual_validation()
    model = dataset / "results" / DATASET / f"{SMOKE}__nnUNetPlansSmall__{configuration}"
    losses = trainer.logger.local_logger.my_fantastic_logging["train_losses"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    validation = json.loads((dataset / "preprocessed" / DATASET / "splits_final.json").read_text())[0]["val"]
    assert len(summary["metric_per_case"]) == len(validation) == 1
    made_with = json.loads((model / "fold_0" / "pseudo_labels.json").read_text())
    assert made_with["threshold"] == 0.9 and made_with["files"].keys() == {f"scan{i}" for i in range(4)}

    assert "ignore" not in json.loads((model / "dataset.json").read_text())["labels"]
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "ignore" not in checkpoint["init_args"]["dataset_json"]["labels"]
    exported = dataset / "model.zip"
    names = ("-d", "901", "-c", configuration, "-tr", SMOKE, "-p", "nnUNetPlansSmall")
    main(["export", *names, "-o", str(exported)])
    with ZipFile(exported) as archive:
        archive.extractall(dataset / "elsewhere")
    (installed,) = (dataset / "elsewhere" / DATASET).iterdir()
    provenance = json.loads((installed / "provenance.json").read_text())["folds"]["0"]
    assert (provenance["method"], provenance["pseudo_labels"]) == (None, made_with)
    assert provenance["unlabeled"]["scans"] == 4
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(installed), (0,))
    stock = make_trainer(nnUNetTrainer, configuration, fold=0)
    stock.initialize()
    assert predictor.network.state_dict().keys() == stock.network.state_dict().keys()


def started(make_trainer, **options):
    trainer = make_trainer(SMOKE, fold=0, **options)
    trainer.on_train_start()
    return trainer


def test_ignored_voxels_get_no_gradient_and_others_do(dataset, make_trainer):
    write_labels(dataset)
    trainer = started(make_trainer)
    for _ in range(20):
        batch = next(trainer.dataloader_train)
        if (batch["target"][0] == 3).any():
            break
    outputs = [torch.randn(len(t), 3, *t.shape[2:], requires_grad=True) for t in batch["target"]]
    trainer.loss(outputs, batch["target"]).backward()
    ignored = (batch["target"][0] == 3).expand(-1, 3, *[-1] * 3)
    assert ignored.any() and not ignored.all()
    assert (outputs[0].grad[ignored] == 0).all()
    assert (outputs[0].grad[~ignored] != 0).any()


def test_without_ignored_voxels_the_loss_is_nnunets(dataset, make_trainer):
    write_labels(dataset)
    trainer, stock = started(make_trainer), make_trainer(nnUNetTrainer, fold=0)
    stock.initialize()
    batch = next(trainer.dataloader_train)
    targets = [t.clamp(max=2) for t in batch["target"]]
    outputs = [torch.randn(len(t), 3, *t.shape[2:]) for t in targets]
    torch.testing.assert_close(trainer.loss(outputs, targets), stock.loss(outputs, targets))


def test_labeled_and_pseudo_labeled_cases_are_drawn_half_and_half_and_validation_is_labeled(dataset, make_trainer):
    write_labels(dataset)
    trainer = started(make_trainer)
    drawn = [key for _ in range(100) for key in next(trainer.dataloader_train)["keys"]]
    assert set(drawn) == {f"scan{i}" for i in range(4)} | set(trainer.do_split()[0])
    assert np.mean([key.startswith("case") for key in drawn]) == pytest.approx(0.5, abs=0.15)
    assert {key for _ in range(5) for key in next(trainer.dataloader_val)["keys"]} == set(trainer.do_split()[1])


def test_foreground_is_oversampled_in_pseudo_labeled_cases(dataset, make_trainer):
    corner = np.zeros((16, 24, 24), np.uint8)
    corner[-2:, -2:, -2:] = 1
    folder = write_labels(dataset)
    for i in range(4):
        write_image(corner, folder / f"scan{i}.nii.gz")
    trainer = started(make_trainer)
    with_foreground = {True: [], False: []}
    for _ in range(60):
        batch = next(trainer.dataloader_train)
        for i, key in enumerate(batch["keys"]):
            if key.startswith("scan"):  # the last of the batch is the one that nnU-Net makes sure of
                with_foreground[i == len(batch["keys"]) - 1].append((batch["target"][0][i] == 1).any().item())
    assert np.mean(with_foreground[True]) > 0.9 and np.mean(with_foreground[False]) < 0.6


def test_a_dataset_with_its_own_ignore_label_keeps_it(dataset, make_trainer):
    write_labels(dataset, labels={"background": 0, "shell": 1, "ignore": 2})
    trainer = started(make_trainer)
    assert trainer.label_manager.ignore_label == 2
    assert next(trainer.dataloader_train)["target"][0].max() <= 2


def test_scans_of_held_out_patients_are_left_out(dataset, make_trainer):
    folder = write_labels(dataset)
    held_out = json.loads((dataset / "preprocessed" / DATASET / "splits_final.json").read_text())[0]["val"][0]
    (dataset / "raw" / DATASET / "patients.json").write_text(json.dumps({held_out: "p", "scan1": "p"}))
    (folder / "scan1.nii.gz").unlink()
    trainer = started(make_trainer)
    assert "scan1" not in trainer.dataloader_train.data_loader.indices
    assert "scan2" in trainer.dataloader_train.data_loader.indices


def test_labels_that_were_marked_bad_are_left_out(dataset, make_trainer):
    folder = write_labels(dataset)
    marks = {"scan1": {"mark": "bad", "label": sha256_of(folder / "scan1.nii.gz")}}
    (folder / "review.json").write_text(json.dumps(marks))
    trainer = started(make_trainer)
    assert {f"scan{i}" for i in range(4)} & {*trainer.dataloader_train.data_loader.indices} == {
        "scan0",
        "scan2",
        "scan3",
    }


def test_a_model_trained_anew_is_noticed(dataset, make_trainer):
    write_labels(dataset)
    model = dataset / "results" / DATASET / "nnUNetTrainer__nnUNetPlansSmall__3d_fullres" / "fold_0"
    model.mkdir(parents=True)
    (model / "checkpoint_final.pth").write_text("another")
    assert "was trained again since" in Path(started(make_trainer).log_file).read_text()


def test_going_on_with_other_labels_than_at_the_start_is_noticed(dataset, make_trainer):
    folder = write_labels(dataset)
    trainer = make_trainer(SMOKE, fold=0)
    trainer.num_epochs = 1
    trainer.run_training()
    noted = Path(trainer.output_folder, "pseudo_labels.json")
    before = json.loads(noted.read_text())

    def go_on():
        trainer = make_trainer(SMOKE, fold=0)
        trainer.load_checkpoint(str(noted.with_name("checkpoint_final.pth")))
        trainer.log_file = str(noted.with_name("log.txt"))
        trainer.on_train_start()
        return Path(trainer.log_file).read_text()

    assert "began with" not in go_on() and json.loads(noted.read_text()) == before
    shutil.copy(folder / "scan0.nii.gz", folder / "scan1.nii.gz")
    line = "this training began with pseudo-labels of nnUNetTrainer, checkpoint_final.pth (model), threshold 0.9 and"
    assert line in (log := go_on()) and "1 of 4 have changed" in log
    assert json.loads(noted.read_text()) != before


def train(rank, folder, port):
    trainer = start(rank, folder, port, recursive_find_trainer_class_by_name(SMOKE))
    before = [p.detach().clone() for p in trainer.network.parameters()]
    for _ in range(3):
        trainer.train_step(next(trainer.dataloader_train))
    assert not all(map(torch.equal, before, trainer.network.parameters()))
    assert_same_on_both(trainer.network.parameters())
    assert Path(trainer.output_folder, "pseudo_labels.json").exists() or rank == 1
    del trainer
    finish()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
def test_two_processes(dataset):
    write_labels(dataset, "2d", "all")
    port = 20000 + (os.getpid() + 101) % 20000
    mp.spawn(train, args=(str(dataset / "preprocessed" / DATASET), port), nprocs=2)


def test_of_the_raw_dataset_only_test_scans_are_here(dataset, make_trainer):
    write_labels(dataset)
    started(make_trainer)
    raw = dataset / "raw" / DATASET
    for name in ("imagesTr", "labelsTr", "imagesUn", "pseudo_labels"):
        shutil.rmtree(raw / name)
    started(make_trainer)


def test_missing_pseudo_labels_and_leaks_stop_the_training(dataset, make_trainer):
    with pytest.raises(DatasetError, match=r"Run: nnUNetv2_crossmatch pseudo-label -d Dataset901_Balls -c 3d_fullres"):
        started(make_trainer)
    write_labels(dataset)
    images = dataset / "raw" / DATASET
    shutil.copy(images / "imagesUn" / "scan0_0000.nii.gz", images / "imagesTs" / "copy_0000.nii.gz")
    with pytest.raises(DatasetError, match="The same image"):
        started(make_trainer)


def test_a_training_that_only_skips_ends_with_a_message_and_its_network_as_it_was(dataset, make_trainer, monkeypatch):
    monkeypatch.setattr(unlabeled_cases, "MAX_SKIPPED", 3)
    write_labels(dataset)
    trainer = started(make_trainer)
    broken, whole = next(trainer.dataloader_train), next(trainer.dataloader_train)
    broken["data"][0, 0, 0, 0, 0] = np.inf
    for batch in (broken, broken, whole, broken, broken):
        before = [p.detach().clone() for p in trainer.network.parameters()]
        trainer.train_step(batch)
        assert all(map(torch.equal, before, trainer.network.parameters())) == (batch is broken)
    with pytest.raises(RuntimeError, match="The gradients of 3 steps in a row were not finite"):
        trainer.train_step(broken)


def test_an_overflow_in_mixed_precision_is_counted(dataset, make_trainer):
    write_labels(dataset)
    trainer = started(make_trainer)
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    assert trainer._skipped_in_a_row == 0
    hook = next(trainer.network.parameters()).register_hook(lambda gradient: gradient * np.inf)
    trainer.train_step(batch)
    assert (trainer._skipped_in_a_row, trainer.grad_scaler.get_scale()) == (1, 512)
    hook.remove()
    trainer.train_step(batch)
    assert trainer._skipped_in_a_row == 0


def test_scans_that_are_left_out_are_not_drawn(dataset, make_trainer):
    leave_out(write_labels(dataset), ["scan1"])
    trainer = started(make_trainer)
    assert {key for key in trainer.dataloader_train.data_loader.indices if key.startswith("scan")} == {
        "scan0",
        "scan2",
        "scan3",
    }
    assert "as pseudo_labels.json and the marks of a review say: scan1" in Path(trainer.log_file).read_text()


def test_length():
    from nnunetv2_crossmatch.trainers import __getattr__ as find

    assert find("nnUNetTrainerPseudoLabel").epochs == 1000
    assert find("nnUNetTrainerPseudoLabel_25epochs").epochs == 25
