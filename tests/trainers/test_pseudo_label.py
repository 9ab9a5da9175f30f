import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.preprocessing.listing import DatasetError
from nnunetv2_crossmatch.preprocessing.splits import ensure_splits
from nnunetv2_crossmatch.pseudo_labels.record import Origin, Record, sha256_of
from tests.conftest import DATASET, ball, write_image

SMOKE = "nnUNetTrainerPseudoLabel_smoke"


def write_labels(
    dataset, configuration="3d_fullres", fold=0, plans="nnUNetPlansSmall", ignore=3, trainer="nnUNetTrainer"
):
    """Pseudo-labels as the command writes them: balls with an ignored shell."""
    base = dataset / "raw" / DATASET
    folder = base / "pseudo_labels" / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"
    rng = np.random.default_rng(0)
    for i in range(4):
        label = ball(rng)[1]
        label[:, :, 10:14] = ignore
        write_image(label, folder / f"scan{i}.nii.gz")
    splits = dataset / "preprocessed" / DATASET / "splits_final.json"
    ensure_splits(splits.parent, [f"case{i}" for i in range(5)], {})
    validation = [] if fold == "all" else json.loads(splits.read_text())[fold]["val"]
    origin = Origin(
        trainer, plans, configuration, fold, "checkpoint_final.pth", "model", 0.9, ignore, validation, {"torch": "0"}
    )
    Record(folder, origin, {f"scan{i}": {"file": sha256_of(folder / f"scan{i}.nii.gz")} for i in range(4)}).write()
    return folder


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("regions", [False, True])
def test_trains_a_stock_model(dataset, make_trainer, configuration, regions):
    write_labels(dataset, configuration)

    def edit(plans, dataset_json):
        if regions:
            dataset_json.update(labels={"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
            (dataset / "preprocessed" / DATASET / "dataset.json").write_text(json.dumps(dataset_json))

    trainer = make_trainer(SMOKE, configuration, fold=0, edit=edit)
    trainer.run_training()
    trainer.perform_actual_validation()
    model = dataset / "results" / DATASET / f"{SMOKE}__nnUNetPlansSmall__{configuration}"
    losses = trainer.logger.local_logger.my_fantastic_logging["train_losses"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    summary = json.loads((model / "fold_0" / "validation" / "summary.json").read_text())
    validation = json.loads((dataset / "preprocessed" / DATASET / "splits_final.json").read_text())[0]["val"]
    assert len(summary["metric_per_case"]) == len(validation) == 1
    assert json.loads((model / "fold_0" / "pseudo_labels.json").read_text())["threshold"] == 0.9

    assert "ignore" not in json.loads((model / "dataset.json").read_text())["labels"]
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "ignore" not in checkpoint["init_args"]["dataset_json"]["labels"]
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainer"}, model / "fold_0" / "stock.pth")
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "stock.pth")
    stock = make_trainer(nnUNetTrainer, configuration, fold=0, edit=edit)
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


def test_labelled_and_pseudo_labelled_cases_are_drawn_half_and_half_and_validation_is_labelled(dataset, make_trainer):
    write_labels(dataset)
    trainer = started(make_trainer)
    drawn = [key for _ in range(100) for key in next(trainer.dataloader_train)["keys"]]
    assert set(drawn) == {f"scan{i}" for i in range(4)} | set(trainer.do_split()[0])
    assert np.mean([key.startswith("case") for key in drawn]) == pytest.approx(0.5, abs=0.15)
    assert {key for _ in range(5) for key in next(trainer.dataloader_val)["keys"]} == set(trainer.do_split()[1])


def test_foreground_is_oversampled_in_pseudo_labelled_cases(dataset, make_trainer):
    write_labels(dataset)
    trainer = started(make_trainer)
    with_foreground = []
    for _ in range(40):
        batch = next(trainer.dataloader_train)
        last = batch["keys"][-1]  # the one that nnU-Net makes sure of
        if last.startswith("scan"):
            with_foreground.append(((batch["target"][0][-1] > 0) & (batch["target"][0][-1] < 3)).any().item())
    assert len(with_foreground) > 5 and np.mean(with_foreground) > 0.8


def test_a_dataset_with_its_own_ignore_label_keeps_it(dataset, make_trainer):
    labels = {"background": 0, "shell": 1, "core": 2, "ignore": 3}
    folder = dataset / "preprocessed" / DATASET
    write_labels(dataset)

    def edit(plans, dataset_json):
        dataset_json.update(labels=labels)
        (folder / "dataset.json").write_text(json.dumps(dataset_json))

    assert started(make_trainer, edit=edit).label_manager.ignore_label == 3


def test_scans_of_held_out_patients_are_left_out(dataset, make_trainer):
    folder = write_labels(dataset)
    held_out = json.loads((dataset / "preprocessed" / DATASET / "splits_final.json").read_text())[0]["val"][0]
    (dataset / "raw" / DATASET / "patients.json").write_text(json.dumps({held_out: "p", "scan1": "p"}))
    (folder / "scan1.nii.gz").unlink()
    trainer = started(make_trainer)
    assert "scan1" not in trainer.dataloader_train.data_loader.indices
    assert "scan2" in trainer.dataloader_train.data_loader.indices


def test_a_model_trained_anew_is_noticed(dataset, make_trainer):
    write_labels(dataset)
    model = dataset / "results" / DATASET / "nnUNetTrainer__nnUNetPlansSmall__3d_fullres" / "fold_0"
    model.mkdir(parents=True)
    (model / "checkpoint_final.pth").write_text("another")
    assert "was trained anew since" in Path(started(make_trainer).log_file).read_text()


def test_missing_pseudo_labels_and_leaks_stop_the_training(dataset, make_trainer):
    with pytest.raises(DatasetError, match=r"Run: nnUNetv2_crossmatch pseudo-label -d Dataset901_Balls -c 3d_fullres"):
        started(make_trainer)
    write_labels(dataset)
    images = dataset / "raw" / DATASET
    shutil.copy(images / "imagesUn" / "scan0_0000.nii.gz", images / "imagesTs" / "copy_0000.nii.gz")
    with pytest.raises(DatasetError, match="The same image"):
        started(make_trainer)


def test_length():
    from nnunetv2_crossmatch.trainers import __getattr__ as find

    assert find("nnUNetTrainerPseudoLabel").epochs == 1000
    assert find("nnUNetTrainerPseudoLabel_25epochs").epochs == 25
