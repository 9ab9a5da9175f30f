"""Unlabeled patches around what the average sees: voxels that are found, kept, and drawn from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset, write_locations
from nnunetv2_crossmatch.trainers import foreground
from nnunetv2_crossmatch.trainers.foreground import Foreground
from tests.trainers.conftest import SmokeHalves, changed, start

LABELS = SimpleNamespace(has_regions=False, foreground_labels=[1, 2])
REGIONS = SimpleNamespace(has_regions=True, foreground_regions=[(1, 2), 2])


class Bright:
    """A network that tells by a voxel's brightness alone: 1 where it is above 0, 2 where it is above 1."""

    def __init__(self, regions: bool = False):
        self.regions, self.seen = regions, []

    def logits(self, image):
        self.seen.append(tuple(image.shape))
        background = torch.zeros_like(image) if not self.regions else image[:, :0]
        return torch.cat((background, image, 2 * image - 1 if not self.regions else image - 1), 1)


class Scans:
    """As :class:`UnlabeledDataset`, in memory; outside of the scans it is bright, too."""

    def __init__(self, count: int, shape: tuple[int, ...]):
        rng = np.random.default_rng(0)
        self.identifiers = [f"scan{i}" for i in range(count)]
        self.images = {case: rng.normal(size=(1, *shape)).astype(np.float32) for case in self.identifiers}
        self.valid = np.zeros((1, *shape), np.int8)
        self.valid[:, :1] = -1
        self.loaded: list[str] = []

    def load_case(self, case):
        self.loaded.append(case)
        return self.images[case], self.valid, None, {}

    def label(self, case: str) -> np.ndarray:
        return ((self.images[case] > 0).astype(int) + (self.images[case] > 1))[0] * (self.valid[0] >= 0)


def make(folder, labels=LABELS, patch=(4, 6, 6), batch=3) -> Foreground:
    return Foreground(folder / "found", patch, batch, labels, torch.device("cpu"))


def found_in(folder, case: str) -> np.ndarray:
    return np.load(folder / "found" / f"{case}.npy")


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
@pytest.mark.parametrize("patch", [(4, 6, 6), (6, 6)], ids=["3d", "2d"])
@pytest.mark.parametrize("shape", [(3, 5, 4), (8, 12, 6), (9, 13, 7)])
def test_every_voxel_of_a_class_is_found_whatever_the_windows(tmp_path, monkeypatch, shape, patch, labels):
    monkeypatch.setattr(foreground, "VOXELS", 10**6)
    scans, network = Scans(1, shape), Bright(labels.has_regions)
    make(tmp_path, labels, patch).sweep(scans, network, [True, True], 0)
    truth = scans.label("scan0")
    found = found_in(tmp_path, "scan0")
    for number, expected in enumerate([truth > 0, truth == 2] if labels.has_regions else [truth == 1, truth == 2]):
        assert found[found[:, 0] == number, 1:].tolist() == np.argwhere(expected).tolist()
    assert set(network.seen) == {(3, 1, *patch)}, "batches of one size"
    windows = np.prod([-(-n // p) for n, p in zip(shape, (1,) * (3 - len(patch)) + patch, strict=True)])
    assert len(network.seen) == -(-windows // 3)


def test_classes_that_are_not_taught_are_left_out_and_of_the_others_some_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(foreground, "VOXELS", 5)
    scans = Scans(1, (8, 12, 12))
    make(tmp_path).sweep(scans, Bright(), [False, True], 0)
    found = found_in(tmp_path, "scan0")
    assert found[:, 0].tolist() == [1] * 5 and len(np.unique(found, axis=0)) == 5
    assert all(scans.label("scan0")[tuple(voxel)] == 2 for voxel in found[:, 1:])


def test_a_sweep_goes_on_where_the_last_one_ended_and_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(foreground, "SCANS", 3)
    scans, swept = Scans(5, (8, 12, 12)), make(tmp_path)
    for expected in (["scan0", "scan1", "scan2"], ["scan3", "scan4", "scan0"]):
        scans.loaded.clear()
        swept.sweep(scans, Bright(), [True, True], 0)
        assert scans.loaded == expected
    assert len(swept) == 5
    monkeypatch.setattr(foreground, "BATCHES", 4)
    scans.loaded.clear()
    swept.sweep(scans, Bright(), [True, True], 0)
    assert scans.loaded == ["scan1", "scan2"], "of three batches each"


def test_the_state_brings_the_files_of_then_back(tmp_path):
    scans, swept = Scans(3, (8, 12, 12)), make(tmp_path)
    swept.sweep(scans, Bright(), [True, True], 0)
    state, before = swept.state(), found_in(tmp_path, "scan0")
    scans.images["scan0"] = -scans.images["scan0"]
    swept.sweep(scans, Bright(), [True, False], 1)
    write_locations(swept.folder, "scan9", before)
    assert not np.array_equal(found_in(tmp_path, "scan0"), before)
    again = make(tmp_path)
    again.load(state)
    assert len(list(swept.folder.iterdir())) == 4, "a validation alone reads the state, and writes nothing"
    again.restore()
    assert np.array_equal(found_in(tmp_path, "scan0"), before)
    assert sorted(file.name for file in swept.folder.iterdir()) == ["scan0.npy", "scan1.npy", "scan2.npy"]
    again.remove()
    assert not swept.folder.exists()


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_patches_are_around_the_voxels_and_the_probes_are_not(make_trainer, configuration):
    trainer = start(make_trainer(changed(SmokeHalves, p_foreground=1.0), configuration))
    loader = trainer.dataloader_unlabeled.augmenter.data_loader
    dataset = loader._data
    assert isinstance(dataset, UnlabeledDataset) and len(list(dataset.locations.iterdir())) == 4
    voxel, patch = (7, 12, 11), loader.patch_size
    for case in dataset.identifiers:
        write_locations(dataset.locations, case, np.array([[0, *voxel], [1, *voxel]], np.int32))
    loader.transforms = None
    middle = tuple(size // 2 for size in (patch[1:] if configuration == "2d" else patch))
    for _ in range(5):
        batch = loader.generate_train_batch()
        for case, data in zip(batch["keys"], batch["data"], strict=True):
            assert data[(0, *middle)] == dataset.load_case(case)[0][(0, *voxel)]
    anywhere = start(make_trainer(changed(SmokeHalves, p_foreground=0.0), configuration))
    for mine, its in zip(trainer.phases.probe._batches, anywhere.phases.probe._batches, strict=True):
        assert torch.equal(mine[0], its[0])
    assert not anywhere.phases.foreground.folder.exists()


def test_nothing_is_left_when_the_training_ends(make_trainer):
    trainer = make_trainer(changed(SmokeHalves, p_foreground=0.33), "2d")
    seen = []
    trainer.on_epoch_end = lambda end=trainer.on_epoch_end: seen.append(len(trainer.phases.foreground)) or end()
    trainer.run_training()
    assert seen == [4, 4] and not trainer.phases.foreground.folder.exists()
