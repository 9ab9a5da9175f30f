import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from tests.conftest import DATASET


@pytest.fixture
def make_trainer(dataset: Path):
    """make_trainer(name or class, configuration, edit=...) -> a seeded trainer on the CPU, not yet started."""

    def make(trainer, configuration="3d_fullres", fold="all", edit=lambda plans, dataset_json: None, seed=0):
        folder = dataset / "preprocessed" / DATASET
        plans = json.loads((folder / "nnUNetPlansSmall.json").read_text())
        dataset_json = json.loads((folder / "dataset.json").read_text())
        edit(plans, dataset_json)
        cls = recursive_find_trainer_class_by_name(trainer) if isinstance(trainer, str) else trainer
        np.random.seed(seed)
        torch.manual_seed(seed)
        return cls({**plans, "continue_training": False}, configuration, fold, dataset_json, torch.device("cpu"))

    return make
