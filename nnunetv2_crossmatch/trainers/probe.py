"""Unlabeled patches that stay the same through a training: what the network and its average say of them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_crossmatch.networks.split_unet import SplitUNet

_VOXELS = 2**23  # of all patches together, as far as the number of patches allows
_PATCHES = (16, 48)  # a scan's share of a class varies from patch to patch
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
    """

    def __init__(
        self, unlabeled: Iterable[tuple[Tensor, Tensor]], labels: Iterable[Tensor], label_manager: LabelManager
    ) -> None:
        self._batches = list(unlabeled)
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
        for half in halves:
            half.eval()  # where there are running statistics they stay as they are
        try:
            for image, of_batch in self._batches:
                of_batch = of_batch.to(device)
                mine, its = (self._masks(n.logits(image.to(device))) & of_batch for n in (network, average))
                axes = (0, *range(2, mine.ndim))
                sums += torch.stack((mine.sum(axes), its.sum(axes), (mine & its).sum(axes)))
                valid += of_batch.sum()
        finally:
            for half, was in zip(halves, training, strict=True):
                half.train(was)
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
