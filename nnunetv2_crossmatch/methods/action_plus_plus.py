"""ACTION++: ACTION with adaptive anatomical contrast on labeled voxels and a temperature that moves.

You, Dai, Min, Staib, Sekhon, Duncan, "ACTION++: Improving Semi-supervised Medical Image Segmentation with
Adaptive Anatomical Contrast", MICCAI 2023, arXiv 2304.02689.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nnunetv2_crossmatch.losses.adaptive_contrast import adaptive_contrast, assign_centers, simplex_centers
from nnunetv2_crossmatch.methods import LabeledBatch
from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.networks.banks import ClassQueue
from nnunetv2_crossmatch.networks.ema import EMATeacher
from nnunetv2_crossmatch.networks.split_unet import Features, SplitUNet
from nnunetv2_crossmatch.networks.voxels import Voxels, draw_voxels, gather_voxels


@dataclass(frozen=True)
class ACTIONPlusPlusConstants(ACTIONConstants):
    """ACTION's, and those of lambda_aaco L_aaco, added to stage iii.

    lambda_aaco: weight, >= 0. The paper's code has 0.01 beside 1/2 (CE + Dice), so 2 x 0.01 beside nnU-Net's CE + Dice.
    lambda_center: weight of the center term within L_aaco, >= 0. Paper (its code has 0.1).
    queue: entries in all, >= 1. Code; here shared out equally among the classes, at least one each.
    mean_rate: share of the new in the running class means, in (0, 1]. Code.
    temperature, lowest_temperature: of L_anco, of the draw of its negatives' classes and of L_aaco when stage
        iii begins and ends, and halfway, > 0. A cosine between them. Paper (its code has 0.07 for L_aaco's lowest).
    student_temperature, teacher_temperature: the lowest of the similarity distillation, halfway through stage i
        and stage ii, each of which begins and ends with ``temperature``. Code (the paper has one lowest, 0.1).
    """

    temperature: float = 1.0
    lowest_temperature: float = 0.1
    lambda_aaco: float = 0.02
    lambda_center: float = 0.2
    queue: int = 12288
    mean_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("(0, 1]", "mean_rate")
        self._require("[1, inf)", "queue")


class ACTIONPlusPlus(ACTION):
    """ACTION whose stage iii also pulls labeled voxels to centers as far apart as can be.

    Every temperature moves, in each stage by one period of a cosine. The queue holds what the teacher, with a moving
    average of the representation head, makes of the voxels that the student's queries are.

    The assignment follows the means after each step, so a step uses the one before; the first one any. The means
    are of all labeled voxels (the code's of the queries).

    Under DDP queue, means and assignment are those of all processes together.
    """

    constants: ACTIONPlusPlusConstants
    contrasts = ("anco", "aaco")
    running: Tensor  # (classes, embedding), 0 for a class not seen yet
    centers: Tensor  # (classes, embedding), each class's own
    _drawn: tuple[Tensor, Tensor]  # of the present step, see _draw_queries

    def __init__(self, constants: ACTIONPlusPlusConstants, student: nn.Module, **plan: Any) -> None:
        super().__init__(constants, student, **plan)
        self.register_buffer("centers", simplex_centers(self.classes, self.embedding))
        self.register_buffer("running", torch.zeros(self.classes, self.embedding))
        self.queue = ClassQueue(self.classes, max(1, constants.queue // self.classes), self.embedding)
        self.teacher_represent = EMATeacher(self.represent)

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        weights = super().weights_after_warmup(progress)
        return {**weights, "aaco": self.constants.lambda_aaco} if "anco" in weights else weights

    @property
    def temperature(self) -> float:
        return self._now(self.constants.lowest_temperature)

    def _now(self, temperature: float) -> float:
        """Cosine from the highest temperature to this one and back, one period a stage."""
        c = self.constants
        share = 0.5 * (1 + cos(2 * pi * c.stage_done(self.progress)))
        return temperature + share * (c.temperature - temperature)

    def _fine_tune(
        self, network: SplitUNet, mixed: tuple[Tensor, ...], labeled: LabeledBatch | None
    ) -> dict[str, Tensor]:
        if labeled is not None:  # before there is a graph, since the teacher's feature maps take room, too
            self._drawn = self._draw_queries(network, labeled)
        return super()._fine_tune(network, mixed, labeled)

    @torch.no_grad()
    def _draw_queries(self, network: SplitUNet, labeled: LabeledBatch) -> tuple[Tensor, Tensor]:
        """Labeled voxels of each class (classes, queries), and the teacher's representations of them."""
        masks = [(labeled.label == k) & labeled.valid for k in range(self.classes)]
        index = torch.stack([draw_voxels(mask, self.constants.queries) for mask in masks])
        _, levels = network.twin(self.teacher.network).forward_levels(labeled.image)
        return index, self.teacher_represent.network(gather_voxels(levels, index))

    def _contrast(self, known: Voxels, pseudo: Voxels, levels: Features, labeled: LabeledBatch) -> dict[str, Tensor]:
        """L_anco, and L_aaco over the labeled voxels."""
        c, (index, keys) = self.constants, self._drawn
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
        self.queue.push(keys, present)
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
        """Give each class the center that suits its mean; here and first, as the assignment waits for the device."""
        if "aaco" in self.weights(self.progress):
            self.centers.copy_(self.centers[assign_centers(self.running, self.centers)])
            self.teacher_represent.update(self.represent, self.ema_decay(self.progress))
        super().after_step(network)
