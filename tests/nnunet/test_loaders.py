"""What our loaders take for granted in nnU-Net's."""

from pathlib import Path

import numpy as np
import pytest
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_crossmatch.nnunet.loaders import GEOMETRY, UnlabeledDataset, labeled_loader, preprocessed_cases
from nnunetv2_crossmatch.nnunet.loaders import unlabeled_loader as make_unlabeled_loader
from tests.conftest import DATASET

# what nnU-Net changes beside geometry: intensities, the labels' form, types
OTHERS = {
    "GaussianNoiseTransform",
    "GaussianBlurTransform",
    "MultiplicativeBrightnessTransform",
    "ContrastTransform",
    "SimulateLowResolutionTransform",
    "GammaTransform",
    "RemoveLabelTransform",
    "DownsampleSegForDSTransform",
}


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_every_transform_of_nnunet_is_known_as_geometry_or_not(make_trainer, configuration):
    trainer = make_trainer("nnUNetTrainer", configuration)
    trainer.on_train_start()
    assert isinstance(trainer.dataloader_train, SingleThreadedAugmenter)
    loader = labeled_loader(trainer.dataloader_train)
    assert isinstance(loader, nnUNetDataLoader)
    transforms = [t.transform if isinstance(t, RandomTransform) else t for t in loader.transforms.transforms]
    assert {type(t).__name__ for t in transforms if not isinstance(t, GEOMETRY)} <= OTHERS
    assert sum(isinstance(t, GEOMETRY) for t in transforms) >= 2  # spatial and mirroring


def test_a_loader_with_an_ignore_label_would_center_patches_on_annotated_voxels(make_trainer, monkeypatch):
    """Which is why ours says that it has none."""
    trainer = make_trainer("nnUNetTrainer")
    trainer.on_train_start()
    labeled = labeled_loader(trainer.dataloader_train)
    assert labeled.has_ignore is False
    manager = trainer.label_manager
    monkeypatch.setattr(type(manager), "has_ignore_label", True)
    of_ignored = nnUNetDataLoader(labeled._data, 2, labeled.patch_size, labeled.final_patch_size, manager)
    assert of_ignored.has_ignore is True
    assert make_unlabeled_loader(labeled, labeled._data, manager).has_ignore is False


def test_the_loader_asks_a_case_for_its_locations(dataset):
    """A preprocessed case without a segmentation has none, and ours adds them."""
    folder = dataset / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres"
    assert preprocessed_cases(folder) == [f"case{i}" for i in range(5)]
    data, seg, seg_prev, properties = UnlabeledDataset(str(folder), ["case0"]).load_case("case0")
    assert properties["class_locations"] == {} and seg_prev is None
    assert np.asarray(data[:]).ndim == np.asarray(seg[:]).ndim == 4
    assert Path(folder, "case0.b2nd").exists()
