"""Where the moving average sees each class in the unlabeled scans, so that patches can be drawn around it."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.nnunet.loaders import UnlabeledDataset, write_locations

SCANS = 40  # of a sweep, whose next one goes on where it ended
BATCHES = 500  # of a sweep, two thirds of an epoch: no further scan is begun after them
VOXELS = 200  # of a class in a scan


class Foreground:
    """Keeps, for each scan that was swept, voxels of each class; the loaders' workers read them from files.

    Args:
        folder: of these files.
        patch: in voxels, 2 or 3 axes.
        batch: windows that are looked at together.
        label_manager: nnU-Net's.
        device: of the networks.
    """

    def __init__(
        self, folder: Path, patch: Sequence[int], batch: int, label_manager: LabelManager, device: torch.device
    ) -> None:
        self.folder = folder
        self._patch = (1,) * (3 - len(patch)) + tuple(patch)
        self._flat = len(patch) == 2
        self._batch = batch
        self._labels = label_manager
        self._device = device
        self._next = 0
        self._voxels: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """How many scans were swept."""
        return len(self._voxels)

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes: plain data and tensors."""
        return {"next": self._next, "voxels": dict(self._voxels)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`; :meth:`restore` the files, too, before they are needed."""
        self._next, self._voxels = state["next"], dict(state["voxels"])

    def restore(self) -> None:
        """Make the files those of the state: there may be a later sweep's, or another training's."""
        self.remove()
        for case in self._voxels:
            self._write(case)

    def remove(self) -> None:
        """The files; patches are then drawn anywhere."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sweep(self, dataset: UnlabeledDataset, network: SplitUNet, taught: Sequence[bool], seed: int) -> None:
        """Look at the next scans, in windows without overlap.

        Args:
            network: the average, in evaluation mode.
            taught: of each foreground class or region; the others are not noted.
            seed: of the voxels that are kept of those found.
        """
        cases = sorted(dataset.identifiers)
        rng, batches = np.random.default_rng(seed), 0
        for _ in range(min(SCANS, len(cases))):
            case = cases[self._next % len(cases)]
            self._next = (self._next + 1) % len(cases)
            image, valid, *_ = dataset.load_case(case)
            labels, count = self._segment(network, np.asarray(image[:]), np.asarray(valid[:])[0] >= 0)
            found = [np.empty((0, 4))]
            for number in np.flatnonzero(taught):
                mask = labels[number] if self._labels.has_regions else labels[0] == number + 1
                voxels = np.flatnonzero(mask)
                chosen = np.sort(rng.choice(voxels, min(VOXELS, len(voxels)), replace=False))
                found.append(np.stack((np.full(len(chosen), number), *np.unravel_index(chosen, mask.shape)), 1))
            self._voxels[case] = torch.from_numpy(np.concatenate(found).astype(np.int32))
            self._write(case)
            batches += count
            if batches >= BATCHES:
                break

    def _write(self, case: str) -> None:
        write_locations(self.folder, case, self._voxels[case].numpy())

    @torch.no_grad()
    def _segment(self, network: SplitUNet, image: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, int]:
        """Class of each voxel of an image (channels, z, y, x), 0 where not valid, (1, z, y, x); with regions whether it
        is in each, (regions, z, y, x). And the batches it took."""
        regions = self._labels.has_regions
        short = [(0, max(0, p - n)) for p, n in zip(self._patch, valid.shape, strict=True)]
        padded = np.pad(image, [(0, 0), *short])
        labels = np.zeros((len(self._labels.foreground_regions) if regions else 1, *padded.shape[1:]), np.int16)
        starts = [sorted({*range(0, n - p + 1, p), n - p}) for p, n in zip(self._patch, padded.shape[1:], strict=True)]
        corners = [
            tuple(slice(a, a + p) for a, p in zip(corner, self._patch, strict=True)) for corner in product(*starts)
        ]
        batches = [corners[i : i + self._batch] for i in range(0, len(corners), self._batch)]
        for windows in batches:
            images = [padded[(slice(None), *window)] for window in windows]
            images += images[:1] * (self._batch - len(images))  # a compiled network knows batches of one size
            data = torch.from_numpy(np.stack(images).astype(np.float32)).to(self._device)
            logits = network.logits(data[:, :, 0] if self._flat else data)
            seen = (logits > 0 if regions else logits.argmax(1, keepdim=True)).to(torch.int16).cpu().numpy()
            for window, of_window in zip(windows, seen, strict=False):
                labels[(slice(None), *window)] = of_window.reshape(-1, *self._patch)
        return labels[(slice(None), *map(slice, valid.shape))] * valid, len(batches)
