"""Unlabeled patches from nnU-Net's own loader, with the geometry of the labeled ones."""

import os
import random
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

# data, segmentation, that of a cascade's first stage, properties
LoadedCase: TypeAlias = tuple[Any, Any, Any, dict[str, Any]]
Augmenter: TypeAlias = NonDetMultiThreadedAugmenter | SingleThreadedAugmenter
# of preprocessed cases
PreprocessedDataset: TypeAlias = nnUNetBaseDataset
Blosc2Dataset: TypeAlias = nnUNetDatasetBlosc2

GEOMETRY = (SpatialTransform, MirrorTransform, MaskImageTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)


class UnlabeledDataset(Blosc2Dataset):
    """Preprocessed unlabeled cases; the segmentation is 0 inside the scan and -1 outside.

    ``locations`` is the folder in which :func:`write_locations` says where the classes are, if anyone does.
    """

    locations: Path | None = None

    def load_case(self, identifier: str) -> LoadedCase:
        data, seg, seg_prev, properties = super().load_case(identifier)
        found = {} if self.locations is None else _read_locations(self.locations, identifier)
        return data, seg, seg_prev, {**properties, "class_locations": found}  # nnU-Net's loader asks for them


def write_locations(folder: Path, case: str, voxels: np.ndarray) -> None:
    """Say where in a case each class is: (class, z, y, x) of some of its voxels, (count, 4).

    Worker processes read it when they next draw from the case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{case}.tmp"
    with open(unfinished, "wb") as stream:
        np.save(stream, voxels)
    os.replace(unfinished, folder / f"{case}.npy")


def _read_locations(folder: Path, case: str) -> dict[int, np.ndarray]:
    """As nnU-Net's preprocessing has them, but for the first column, in which it has the channel and reads nothing."""
    try:
        voxels = np.load(folder / f"{case}.npy")
    except FileNotFoundError:
        return {}
    return {int(number): voxels[voxels[:, 0] == number] for number in np.unique(voxels[:, 0])}


def preprocessed_cases(folder: Path) -> list[str]:
    """Ids of the cases that nnU-Net has preprocessed into a folder, in whichever of its formats."""
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))


def labeled_loader(augmenter: Augmenter) -> nnUNetDataLoader:
    """The loader behind one of nnU-Net's augmenters."""
    return augmenter.data_loader if isinstance(augmenter, SingleThreadedAugmenter) else augmenter.generator


def unlabeled_loader(
    labeled: nnUNetDataLoader, dataset: PreprocessedDataset, label_manager: LabelManager, p_foreground: float = 0.0
) -> nnUNetDataLoader:
    """A loader of random patches with the batch size, patch size and geometry of ``labeled``.

    Its batches are ``data`` (batch, channels, *spatial) and ``target`` (batch, 1, *spatial): -1 where
    padded and, as nnU-Net crops to nonzero voxels, in the zero background; 0 elsewhere. A share of ``p_foreground``
    of the patches is around a voxel of a class, each class alike, in cases of which that is known.
    """
    dimensions = slice(1, None) if labeled.patch_size_was_2d else slice(None)
    loader = nnUNetDataLoader(
        dataset,
        labeled.batch_size,
        labeled.patch_size[dimensions],
        labeled.final_patch_size[dimensions],
        label_manager,
        oversample_foreground_percent=p_foreground,
        probabilistic_oversampling=p_foreground > 0,
        transforms=ComposeTransforms([t for t in labeled.transforms.transforms if isinstance(t, GEOMETRY)]),
    )
    loader.has_ignore = False  # with an ignore label nnU-Net centers patches on annotated voxels
    return loader


def without_intensity(labeled: nnUNetDataLoader, label_manager: LabelManager) -> nnUNetDataLoader:
    """The loader of the same labeled cases, with patches drawn and turned as unlabeled ones are."""
    return unlabeled_loader(labeled, labeled._data, label_manager)


def draw_patches(loader: nnUNetDataLoader, count: int, seed: int) -> list[dict[str, Any]]:
    """Batches of together ``count`` patches at least, the same for a seed; no other random draw is touched."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return [loader.generate_train_batch() for _ in range(-(-count // loader.batch_size))]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Halves:
    """Gives the batches of an augmenter whole or, in an epoch that wants it, one half after the other.

    Every second sample is of the first half, so that nnU-Net's last ones, with forced foreground, fall into both where
    there are two of them (from five samples on). A batch of one stays whole.

    Args:
        augmenter: gives ``data`` (batch, channels, *spatial) and ``target``, the same or a list of levels.
        larger_first: which half has one more of an odd batch.
    """

    def __init__(self, augmenter: Augmenter, *, larger_first: bool) -> None:
        self.augmenter = augmenter
        self._order = (0, 1) if larger_first else (1, 0)
        self._halving = False
        self._rest: list[dict[str, Any]] = []

    def begin_epoch(self, *, halving: bool) -> None:
        """A half that was left over is forgotten, so that no checkpoint needs it."""
        self._halving, self._rest = halving, []

    def __iter__(self) -> "Halves":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._rest:
            return self._rest.pop()
        batch = next(self.augmenter)
        if not self._halving or len(batch["data"]) == 1:
            return batch
        first, second = (
            {
                "data": batch["data"][start::2],
                "target": [level[start::2] for level in batch["target"]]
                if isinstance(batch["target"], list)
                else batch["target"][start::2],
            }
            for start in self._order
        )
        self._rest = [second]
        return first


def augment(loader: nnUNetDataLoader, workers: int, pin_memory: bool) -> Augmenter:
    """Run a loader in ``workers`` background processes (0: in this one), as nnU-Net runs its own."""
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    augmenter = NonDetMultiThreadedAugmenter(
        loader, None, workers, num_cached=max(6, workers // 2), seeds=None, pin_memory=pin_memory, wait_time=0.002
    )
    next(augmenter)  # start the workers now, as nnU-Net does
    return augmenter
