"""BCP: labeled and unlabeled patches are pasted into each other, both ways.

Bai, Chen, Li, Shen, Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR
2023, arXiv 2305.00673.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_crossmatch.losses.deep_supervision import deeply_supervised
from nnunetv2_crossmatch.losses.masked_cross_entropy import masked_cross_entropy
from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.methods import SUPERVISED, Constants, LabeledBatch, Method, UnlabeledBatch, ramp_up
from nnunetv2_crossmatch.networks.split_unet import Outputs, SplitUNet
from nnunetv2_crossmatch.views.components import keep_largest_components
from nnunetv2_crossmatch.views.mixing import draw_boxes, paste
from nnunetv2_crossmatch.views.target import PseudoLabel, probabilities

# Of Dice; the paper's code for ACDC. At 1e-5 a class that a part lacks is pushed far harder than by cross entropy.
EPS = 1e-10


@dataclass(frozen=True)
class BCPConstants(Constants):
    """Constants of L = L_labeled + weight ramp_up L_unlabeled, each over its part of the mixtures.

    weight: of the unlabeled parts when the training ends, >= 0. Paper; at 0 the mixtures still train, see :class:`BCP`.
        The ramp over the self-training is chosen, since nnU-Net's networks may not know every class when it begins. The
        paper's code computes and logs the same ramp, and weighs by the constant.
    edge: of the box, as a share of the patch's, in (0, 1). Paper.
    pretrain: share of the training with labeled pairs alone, at least, in [0, 1): longer if the network does not know
        the classes then. Paper's for ACDC, 10 000 of 40 000 steps; for LA it has 2000 of 17 000.
    ema_decay: of the teacher, in [0, 1). Paper.
    """

    weight: float = 0.5
    edge: float = 2 / 3
    pretrain: float = 0.25
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        self._require("[0, inf)", "weight")
        self._require("(0, 1)", "edge")
        self._require("[0, 1)", "pretrain", "ema_decay")


class BCP(Method):
    """Half of the batch has unlabeled boxes in labeled patches, half labeled boxes in unlabeled patches; a
    batch of one has both. A labeled part keeps nnU-Net's augmentation, an unlabeled one is the weak view.

    No plain supervised term: the mixtures take its place, with Dice + cross entropy on each level of nnU-Net's deep
    supervision, since nnU-Net's own cannot weigh a part of a patch. The paper's code has half of the sum over its two
    batches of mixtures, one each way, which is this scale; which samples go which way is drawn anew in each step.

    The teacher is the network's moving average from the first step on, some 100 steps long: when self-training begins
    it is the pre-trained network, as in the paper.

    The teacher's label keeps the largest connected component of each class, and what is cut off is background:
    the paper's way, made for one heart in a patch, not for classes with several parts.
    """

    waits = True
    constants: BCPConstants

    def __init__(self, constants: BCPConstants, student: nn.Module, **plan: Any) -> None:
        super().__init__(constants, student, **plan)
        self.stages = ((0.0, "pre-training: labeled patches pasted into each other"),)  # what follows has to be ready

    def _pretrains(self, progress: float) -> bool:
        return self.started is None or progress < self.constants.pretrain

    def weights(self, progress: float) -> dict[str, float]:
        """Labeled pairs train while it waits."""
        return self.weights_after_warmup(progress)

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        if self._pretrains(progress):
            return {SUPERVISED: 0.0, "labeled": 1.0}
        c = self.constants
        begun = max(c.pretrain, self.started or 0.0)
        return {
            SUPERVISED: 0.0,
            "labeled": 1.0,
            "unlabeled": c.weight * ramp_up((progress - begun) / (1 - begun)),
        }

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        c, image, batch = self.constants, labeled.image, len(labeled.image)
        volume = c.edge ** (image.ndim - 2)
        box = draw_boxes(batch, tuple(image.shape[2:]), 1.0, image.device, (volume, volume), (1.0, 1.0))
        # an ignore label is past the last class
        own = PseudoLabel(labeled.label.masked_fill(~labeled.valid, 0), labeled.valid, labeled.valid)
        if self._pretrains(self.progress):
            self.partner.draw(batch)
            target = own.mix(box, self.partner)
            outputs = network.outputs(paste(box, image, self.partner.of("image", image)))
            yield {"labeled": self._loss(outputs, target, torch.ones_like(box))}
            return
        label = self._teach(network, unlabeled)
        if batch == 1:
            parts = [~box, box]
        else:
            number = torch.arange(batch, device=box.device).reshape(-1, *[1] * (box.ndim - 1))
            first = torch.rand(1, device=box.device) < 0.5  # nnU-Net has foreground in the last samples for sure
            parts = [torch.where((number % 2 == 1) ^ first, box, ~box)]  # every second sample the other way
        for from_labeled in parts:
            outputs = network.outputs(paste(from_labeled, unlabeled.image, image))
            yield {
                "labeled": self._loss(outputs, own, from_labeled) / len(parts),
                "unlabeled": self._loss(outputs, label, ~from_labeled) / len(parts),
            }
            del outputs  # not beside the next ones

    @torch.no_grad()
    def _teach(self, network: SplitUNet, unlabeled: UnlabeledBatch) -> PseudoLabel:
        logits = network.twin(self.teacher.network).logits(unlabeled.image)
        label = PseudoLabel.of(logits, unlabeled.valid, regions=self.regions, taught=self.taught)
        return replace(label, label=keep_largest_components(label.label))

    def _loss(self, outputs: Outputs, target: PseudoLabel, part: Tensor) -> Tensor:
        """Over the ``part`` of the mixture that the target belongs to, bool (batch, 1, *spatial)."""

        def of_level(logits: Tensor, label: Tensor, kept: Tensor) -> Tensor:
            p = probabilities(logits, regions=self.regions)
            dice = masked_dice_loss(p, label, kept, eps=EPS)
            return dice + masked_cross_entropy(logits, label, kept, kept)

        return deeply_supervised(of_level, outputs, target.label, target.kept & part)
