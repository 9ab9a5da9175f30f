"""Unlabeled patches that stay the same through a training: what the network and its average say of them."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_crossmatch.networks.split_unet import SplitUNet

_VOXELS = 2**23  # of all patches together, as far as the number of patches allows
_PATCHES = (16, 48)  # a scan's share of a class varies from patch to patch
SHOWN = 4  # patches, of which the middle slices are kept to look at
_PIXELS = 256  # of a slice's longer side; they are kept in checkpoints and drawn after each epoch
_BATCHES = 8  # of two networks: 16 forward passes more, 2 % of nnU-Net's epoch


def patches_wanted(patch: Sequence[int], batch: int) -> int:
    """How many patches of this size (voxels) show a class's share, and cost no more than ``_BATCHES`` batches."""
    fewest, most = _PATCHES
    return int(np.clip(_VOXELS // np.prod(patch), fewest, np.clip(_BATCHES * batch, fewest, most)))


class Probe:
    """Measures what needs no labels; see trainers/readiness.py.

    Args:
        unlabeled: images (batch, channels, *spatial) and valid voxels, bool (batch, 1, *spatial).
        labels: segmentations (batch, 1, *spatial) of labeled patches drawn the same way, -1 where not valid.
        label_manager: nnU-Net's.

    Attributes:
        slices: (patches, rows, columns), the middle slice of the first channel of the first patches; of a large one
            every second row and column, or every third, ...
        labels: likewise, what :meth:`measure` has last seen the average say of them: the number of the class or region,
            0 for none.
    """

    labels: np.ndarray

    def __init__(
        self, unlabeled: Iterable[tuple[Tensor, Tensor]], labels: Iterable[Tensor], label_manager: LabelManager
    ) -> None:
        self._batches = list(unlabeled)
        self.slices = _middle_of(torch.cat([image[:, 0] for image, _ in self._batches])[:SHOWN]).clone().numpy()
        self._regions = label_manager.has_regions
        self._classes = label_manager.foreground_regions if self._regions else label_manager.all_labels
        counts, valid = np.zeros(len(self._classes)), 0
        for label in labels:
            counted = label >= 0
            valid += int(counted.sum())
            for i, of_class in enumerate(self._classes):
                counts[i] += int((torch.isin(label, torch.tensor(np.atleast_1d(of_class))) & counted).sum())
        # not known of a class that no patch has, nor where only some voxels are annotated
        unknown = (counts == 0) | label_manager.has_ignore_label
        self.labeled_share = np.where(unknown, np.nan, counts / max(1, valid))

    @torch.no_grad()
    def measure(self, network: SplitUNet, average: SplitUNet, device: torch.device) -> dict[str, list[float]]:
        """``stability``: Dice of the network's with the average's labels; ``share``: the average's share of the
        voxels over the labeled one. One value per class, the background too, or per region; nan where there is none."""
        sums = torch.zeros(3, len(self._classes), device=device)  # both, their overlap
        valid = torch.zeros((), device=device)
        halves = [half for n in (network, average) for half in (n.encoder, n.decoder)]
        training = [half.training for half in halves]
        labels: list[np.ndarray] = []
        for half in halves:
            half.eval()  # where there are running statistics they stay as they are
        try:
            for image, of_batch in self._batches:
                of_batch = of_batch.to(device)
                mine, its = (self._masks(n.logits(image.to(device))) & of_batch for n in (network, average))
                axes = (0, *range(2, mine.ndim))
                sums += torch.stack((mine.sum(axes), its.sum(axes), (mine & its).sum(axes)))
                valid += of_batch.sum()
                labels += [self._numbers(its)] if sum(map(len, labels)) < SHOWN else []
        finally:
            for half, was in zip(halves, training, strict=True):
                half.train(was)
        self.labels = np.concatenate(labels)[:SHOWN]
        of_network, of_average, overlap = sums.cpu().double().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            stability = 2 * overlap / (of_network + of_average)
            share = of_average / float(valid) / self.labeled_share
        return {"stability": stability.tolist(), "share": share.tolist()}

    def _masks(self, logits: Tensor) -> Tensor:
        """bool (batch, classes or regions, *spatial)."""
        if self._regions:
            return logits > 0
        label = logits.argmax(1, keepdim=True)
        return torch.cat([label == i for i in range(logits.shape[1])], 1)

    def _numbers(self, masks: Tensor) -> np.ndarray:
        """uint8 (batch, rows, columns) of the middle slices; the later of two regions covers the earlier."""
        numbers = torch.arange(masks.shape[1], device=masks.device, dtype=torch.uint8) + self._regions
        slices = torch.stack([_middle_of(masks[:, i]) for i in range(masks.shape[1])], 1)
        return (slices * numbers[:, None, None]).amax(1).cpu().numpy()


def _middle_of(patches: Tensor) -> Tensor:
    """(batch, rows, columns) of (batch, *spatial), as :attr:`Probe.slices`."""
    slices = patches if patches.ndim == 3 else patches[:, patches.shape[1] // 2]
    step = math.ceil(max(slices.shape[1:]) / _PIXELS)
    return slices[:, ::step, ::step]
