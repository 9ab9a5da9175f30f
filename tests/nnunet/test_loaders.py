"""What our loaders take for granted in nnU-Net's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunetv2_crossmatch.nnunet.loaders import (
    GEOMETRY,
    Blosc2Dataset,
    Halves,
    UnlabeledDataset,
    draw_patches,
    labeled_loader,
    preprocessed_cases,
    unlabeled_loader,
    without_intensity,
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


def numbered(batch: int, levels: bool) -> dict:
    data = torch.arange(batch).float().reshape(batch, 1, 1, 1)
    return {"data": data, "target": [data, data[:, :, :1]] if levels else data}


@pytest.mark.parametrize("batch", [2, 5, 6])
@pytest.mark.parametrize("levels", [True, False])
def test_two_halves_are_one_batch_and_forced_foreground_falls_into_both(batch, levels):
    labeled, unlabeled = (
        Halves(iter(lambda: numbered(batch, levels), None), larger_first=first) for first in (True, False)
    )
    assert len(next(labeled)["data"]) == batch, "whole until it is told"
    for loader in (labeled, unlabeled):
        loader.begin_epoch(halving=True)
    pairs = [(next(labeled), next(unlabeled)) for _ in range(2)]
    for halves in zip(*pairs, strict=True):
        samples = sorted(int(value) for half in halves for value in half["data"].flatten())
        assert samples == list(range(batch))
        for half in halves:
            target = half["target"][1] if levels else half["target"]
            assert torch.equal(target.flatten(), half["data"].flatten())
    assert all(len(a["data"]) + len(b["data"]) == batch for a, b in pairs), "as many samples a step as nnU-Net's"
    if batch == 6:  # nnU-Net forces foreground in the last third
        assert all({4, 5} & set(half["data"].flatten().tolist()) for half, _ in pairs)


def test_a_batch_of_one_stays_whole_and_what_is_left_of_an_epoch_is_forgotten():
    loader = Halves(iter(lambda: numbered(1, False), None), larger_first=True)
    loader.begin_epoch(halving=True)
    assert len(next(loader)["data"]) == 1
    loader = Halves(iter(lambda: numbered(4, False), None), larger_first=True)
    loader.begin_epoch(halving=True)
    next(loader)
    loader.begin_epoch(halving=False)
    assert len(next(loader)["data"]) == 4


def test_patches_that_stay_the_same_do_not_touch_other_random_numbers(make_trainer):
    trainer = make_trainer("nnUNetTrainer")
    trainer.on_train_start()
    loader = without_intensity(labeled_loader(trainer.dataloader_train), trainer.label_manager)
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    first, second = draw_patches(loader, 3, 1), draw_patches(loader, 3, 1)
    assert np.array_equal(np.random.random(3), expected)
    assert sum(len(batch["data"]) for batch in first) >= 3
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a["data"], b["data"]) and torch.equal(a["target"], b["target"])
    assert not torch.equal(first[0]["data"], draw_patches(loader, 3, 2)[0]["data"])
