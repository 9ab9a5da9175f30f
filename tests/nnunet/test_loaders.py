"""What our loaders take for granted in nnU-Net's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_crossmatch.nnunet.loaders import (
    GEOMETRY,
    Blosc2Dataset,
    UnlabeledDataset,
    labeled_loader,
    preprocessed_cases,
    unlabeled_loader,
)
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
    transforms = loader.transforms.transforms
    assert {SpatialTransform, MirrorTransform} <= {type(t) for t in transforms}, "not wrapped, as ours are looked for"
    others = [t.transform if isinstance(t, RandomTransform) else t for t in transforms if not isinstance(t, GEOMETRY)]
    assert {type(t).__name__ for t in others} <= OTHERS


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_weak_view_has_geometry_and_no_other_change(make_trainer, configuration):
    """A scan of one value keeps it, but for what is blended with the padding."""
    trainer = make_trainer("nnUNetTrainer", configuration)
    trainer.on_train_start()
    labeled = labeled_loader(trainer.dataloader_train)

    class OneValue(UnlabeledDataset):
        def load_case(self, identifier):
            data, *others = super().load_case(identifier)
            return np.full_like(data[:], 3.7), *others

    loader = unlabeled_loader(labeled, OneValue(labeled._data.source_folder, ["case0"]), trainer.label_manager)
    assert not OTHERS & {type(getattr(t, "transform", t)).__name__ for t in loader.transforms.transforms}
    for _ in range(20):
        values = next(loader)["data"]
        assert values.min() >= -1e-4 and values.max() <= 3.7 + 1e-4
        assert ((values - 3.7).abs() < 1e-4).float().mean() > 0.3


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
    assert unlabeled_loader(labeled, labeled._data, manager).has_ignore is False


def test_the_loader_asks_a_case_for_its_locations(make_trainer, tmp_path):
    """An unlabeled case has none, and ours adds them."""
    trainer = make_trainer("nnUNetTrainer")
    trainer.on_train_start()
    labeled = labeled_loader(trainer.dataloader_train)
    source = Path(labeled._data.source_folder)
    for file in source.glob("case0*"):
        shutil.copy(file, tmp_path)
    properties = load_pickle(str(source / "case0.pkl"))
    write_pickle({k: v for k, v in properties.items() if k != "class_locations"}, str(tmp_path / "case0.pkl"))
    loaders = [
        nnUNetDataLoader(
            cls(str(tmp_path), ["case0"]), 2, labeled.patch_size, labeled.final_patch_size, trainer.label_manager
        )
        for cls in (Blosc2Dataset, UnlabeledDataset)
    ]
    with pytest.raises(KeyError, match="class_locations"):
        loaders[0].generate_train_batch()
    assert list(loaders[1].generate_train_batch()["keys"]) == ["case0", "case0"]


def test_cases_are_those_of_the_preprocessed_folder(dataset):
    folder = dataset / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres"
    assert preprocessed_cases(folder) == [f"case{i}" for i in range(5)]
