"""ACTION++: ACTION with adaptive anatomical contrast on labeled voxels and a temperature that moves.

You, Dai, Min, Staib, Sekhon, Duncan, "ACTION++: Improving Semi-supervised Medical Image Segmentation with
Adaptive Anatomical Contrast", MICCAI 2023, arXiv 2304.02689.
"""

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunetv2_crossmatch.losses.adaptive_contrast import adaptive_contrast, assign_centers, simplex_centers
from nnunetv2_crossmatch.methods import LabeledBatch
from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.networks.banks import ClassQueue
from nnunetv2_crossmatch.networks.split_unet import Features
from nnunetv2_crossmatch.networks.voxels import Voxels, draw_voxels, gather_voxels


@dataclass(frozen=True)
class ACTIONPlusPlusConstants(ACTIONConstants):
    """ACTION's, and those of lambda_aaco L_aaco, added to stage iii.

    lambda_aaco: weight, >= 0. Paper.
    lambda_center: weight of the center term within L_aaco, >= 0. Paper (its code has 0.1).
    queue: entries in all. Paper; here shared out equally among the classes, at least one each.
    mean_rate: share of the new in the running class means, in (0, 1]. Paper.
    temperature, lowest_temperature: of L_anco and L_aaco when stage iii begins and ends, and halfway, > 0.
        A cosine between them. Paper.
    """

    temperature: float = 1.0
    lowest_temperature: float = 0.1
    lambda_aaco: float = 0.01
    lambda_center: float = 0.2
    queue: int = 12288
    mean_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("(0, 1]", "mean_rate")
        self._require("[1, inf)", "queue")


class ACTIONPlusPlus(ACTION):
    """ACTION whose stage iii also pulls labeled voxels to centers as far apart as can be.

    The assignment follows the means after each step, so a step uses the one before; the first one any.

    Under DDP queue, means and assignment are those of all processes together.
    """

    constants: ACTIONPlusPlusConstants
    contrasts = ("anco", "aaco")
    running: Tensor  # (classes, embedding), 0 for a class not seen yet
    centers: Tensor  # (classes, embedding), each class's own

    def __init__(
        self, constants: ACTIONPlusPlusConstants, student: nn.Module, *, patch: tuple[int, ...], regions: bool = False
    ) -> None:
        super().__init__(constants, student, patch=patch, regions=regions)
        self.register_buffer("centers", simplex_centers(self.classes, self.embedding))
        self.register_buffer("running", torch.zeros(self.classes, self.embedding))
        self.queue = ClassQueue(self.classes, max(1, constants.queue // self.classes), self.embedding)

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        weights = super().weights_after_warmup(progress)
        return {**weights, "aaco": self.constants.lambda_aaco} if "anco" in weights else weights

    @property
    def temperature(self) -> float:
        c, start = self.constants, self.constants.stage_i + self.constants.stage_ii
        done = (self.progress - start) / max(1 - start, 1e-6)
        return c.lowest_temperature + 0.5 * (1 + cos(2 * pi * done)) * (c.temperature - c.lowest_temperature)

    def _contrast(self, known: Voxels, pseudo: Voxels, levels: Features, labeled: LabeledBatch) -> dict[str, Tensor]:
        """L_anco, and L_aaco over the labeled voxels."""
        c = self.constants
        masks = [(labeled.label == k) & labeled.valid for k in range(self.classes)]
        index = torch.stack([draw_voxels(mask, c.queries) for mask in masks])
        queries, present = self.represent(gather_voxels(levels, index)), known.counts > 0
        loss = adaptive_contrast(
            queries,
            present,
            self.queue.entries,
            self.queue.known,
            self.centers,
            temperature=self.temperature,
            center_weight=c.lambda_center,
        )
        self.queue.push(queries, present)
        self._move_means(known)
        return {**super()._contrast(known, pseudo, levels, labeled), "aaco": loss}

    @torch.no_grad()
    def _move_means(self, known: Voxels) -> None:
        """Move the running means by this batch's."""
        means, counts = self._means(known.sums, known.counts)
        means = F.normalize(means, dim=1)
        rate = torch.where(self.running.any(1, keepdim=True), self.constants.mean_rate, 1.0)  # the first is copied
        usable = (counts > 0) & means.isfinite().all(1)
        self.running.copy_(torch.where(usable[:, None], self.running.lerp(means, rate), self.running))

    def after_step(self, network: nn.Module) -> None:
        """Give each class the center that suits its mean; here, as the assignment waits for the device."""
        super().after_step(network)
        if "aaco" in self.weights(self.progress):
            self.centers.copy_(self.centers[assign_centers(self.running, self.centers)])
