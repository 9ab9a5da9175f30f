"""Trainers of a few steps whose unlabeled losses act at once, and datasets that they train on."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.splits import ensure_splits
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled
from nnunetv2_crossmatch.self_training.confidence import with_ignore_label
from nnunetv2_crossmatch.self_training.record import Origin, Record, image_stamp, pseudo_label_folder
from nnunetv2_crossmatch.trainers import (
    METHODS,
    nnUNetTrainerACTIONPlusPlus_smoke,
    nnUNetTrainerCrossMatch_smoke,
    nnUNetTrainerCrossMatchPaper_smoke,
    nnUNetTrainerMeanTeacher_smoke,
    semi_supervised,
)
from nnunetv2_crossmatch.utilities.files import sha256_of
from tests.conftest import DATASET, ball, write_image

# these learn from files and begin with a model: they have tests of their own
ONLINE = [name for name, module in METHODS.items() if module not in ("pseudo_label", "from_stock")]
# from the first step on, and with voxels that count although the network knows nothing yet
EAGER = {"warmup": 0.0, "threshold": 0.0, "valid": 0.0, "confident": 0.0, "hard": 1.0, "queries": 8, "negatives": 8}


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawn after each epoch they would take longer than all the rest; nnU-Net's own: see warm.py."""
    monkeypatch.setattr(semi_supervised, "plot_curves", lambda logger, file, *others: file.touch())


def changed(cls: type, **values: object) -> type:
    """A subclass with other constants, as far as the method has them, whose network is ready from the first step on."""
    names = {field.name for field in fields(cls.constants)}
    constants = replace(cls.constants, **{name: value for name, value in values.items() if name in names})
    return type(cls.__name__, (cls,), {"constants": constants, "ready_at": 0})


class Smoke(changed(nnUNetTrainerCrossMatchPaper_smoke, **EAGER)):
    """Every stream in each step, beside nnU-Net's own loss."""


class SmokeHalves(changed(nnUNetTrainerCrossMatch_smoke, **EAGER, ramp=0.0)):
    """The default: half of the batch labeled, half not, taught by the average from the first step on."""


class SmokeEMA(changed(nnUNetTrainerMeanTeacher_smoke, **EAGER)):
    """With a moving average."""


class SmokePlusPlus(changed(nnUNetTrainerACTIONPlusPlus_smoke, **EAGER, queue=48)):
    pass


def start(trainer):
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def weights(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.network.parameters()]


def noise(trainer) -> tuple[dict, dict]:
    """A labeled and an unlabeled batch for an initialized trainer, on the CPU as the loaders make them."""
    plan, labels = trainer.configuration_manager, trainer.label_manager
    count, channels = trainer.batch_size, len(labels.foreground_regions) if labels.has_regions else 1
    image = torch.randn(2, count, trainer.num_input_channels, *plan.patch_size)
    sizes = [
        np.round(np.multiply(plan.patch_size, scale)).astype(int) for scale in trainer._get_deep_supervision_scales()
    ]
    target = [torch.randint(0, 2, (count, channels, *size), dtype=torch.int16) for size in sizes]
    return {"data": image[0], "target": target}, {"data": image[1], "target": target[0][:, :1]}


def residual(plans, dataset_json):
    for configuration in ("2d", "3d_fullres"):
        architecture = plans["configurations"][configuration]["architecture"]
        architecture["network_class_name"] = architecture["network_class_name"].replace(
            "PlainConvUNet", "ResidualEncoderUNet"
        )
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")


def regions(plans, dataset_json):
    dataset_json["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    dataset_json["regions_class_order"] = [1, 2]


def ignore(plans, dataset_json):
    dataset_json["labels"]["ignore"] = 3


def regions_with_ignore(plans, dataset_json):
    regions(plans, dataset_json)
    ignore(plans, dataset_json)


def annotate_all(dataset: Path) -> None:
    """What preprocessing with an ignore label adds: locations of annotated voxels, in labeled cases only."""
    for file in dataset.glob("preprocessed/*/nnUNetPlans_*/case*.pkl"):
        properties = load_pickle(str(file))
        shape = properties["shape_after_cropping_and_before_resampling"]
        properties["class_locations"][(-1, 0, 1, 2)] = np.argwhere(np.ones((1, *shape)))
        write_pickle(properties, str(file))


def write_labels(
    dataset, configuration="3d_fullres", fold=0, plans="nnUNetPlansSmall", trainer="nnUNetTrainer", **dataset_changes
):
    """Pseudo-labels as the command writes them, balls with an ignored shell, after changes to dataset.json."""
    raw, preprocessed = (dataset / part / DATASET for part in ("raw", "preprocessed"))
    dataset_json = {**json.loads((preprocessed / "dataset.json").read_text()), **dataset_changes}
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(dataset_json))
    labels = with_ignore_label(dataset_json)["labels"]
    of_dataset = Dataset(raw, preprocessed, dataset_json)
    planned = Planned(of_dataset, of_dataset.plans(plans), configuration)
    ensure_splits(preprocessed, [f"case{i}" for i in range(5)], {})
    preprocess_unlabeled(planned, 1)
    images = Manifest.read(planned.unlabeled_folder)
    validation = [] if fold == "all" else json.loads((preprocessed / "splits_final.json").read_text())[fold]["val"]
    of_model = trainer, plans, configuration, fold, [fold], "checkpoint_final.pth", "model"
    made_with = Origin(*of_model, 0.9, labels, validation, {"torch": "0"})
    record = Record(pseudo_label_folder(raw, RunFolder.of(DATASET, trainer, plans, configuration, fold)))
    rng = np.random.default_rng(0)
    for case, entry in images.cases.items():
        label = ball(rng)[1]
        label[:, :, 10:14] = labels["ignore"]
        file = record.folder / f"{case}.nii.gz"
        write_image(label, file)
        of_file = {"image": image_stamp(entry), "file": sha256_of(file), "replaced": None, "confident": {}}
        record.add(case, {**asdict(made_with), **of_file})
    return record.folder
