"""Mean Teacher: the network's moving average sees noise, the network agrees with it.

Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv 1703.01780. Segmentation and
constants: Yu et al., arXiv 1907.07034, and SSL4MIS.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.masked_mse import masked_mse
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch, ramp_up
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views.target import probabilities


@dataclass(frozen=True)
class MeanTeacherConstants(Constants):
    """Constants of L = L_nnU-Net + weight ramp_up L_consistency.

    weight: when the training ends, >= 0. SSL4MIS has 1/2 (CE + Dice) + 0.1 ramp_up L_consistency. nnU-Net's loss is
        CE + Dice, twice that, so 0.1 there is 0.2 here.
    warmup: share of the training before the loss comes in, in [0, 1). SSL4MIS: 1000 of 30 000 steps.
    ema_decay: of the teacher, in [0, 1). SSL4MIS.
    noise: standard deviation, >= 0, of what is added to the teacher's view; cut off at twice that. SSL4MIS;
        there too the images have a standard deviation of 1.
    """

    weight: float = 0.2
    warmup: float = 1 / 30
    ema_decay: float = 0.99
    noise: float = 0.1

    def __post_init__(self) -> None:
        self._require("[0, inf)", "weight", "noise")
        self._require("[0, 1)", "warmup", "ema_decay")


class MeanTeacher(Method):
    """The student sees the weak view as it is, its teacher with noise; nnU-Net's geometry is the rest."""

    constants: MeanTeacherConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        return {"consistency": self.constants.weight * ramp_up(progress)}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        target = self._teach(network, unlabeled.image)
        kept = self._kept(network, unlabeled)
        prediction = probabilities(network.logits(unlabeled.image), regions=self.regions)
        yield {"consistency": self._distance(prediction, target, kept)}

    @torch.no_grad()
    def _teach(self, network: SplitUNet, image: Tensor) -> Tensor:
        """The teacher's probabilities of ``image`` with noise."""
        c = self.constants
        noise = (c.noise * torch.randn_like(image)).clamp(-2 * c.noise, 2 * c.noise)
        return probabilities(network.twin(self.teacher.network).logits(image + noise), regions=self.regions)

    def _kept(self, network: SplitUNet, unlabeled: UnlabeledBatch) -> Tensor:
        """Voxels that count, bool (batch, 1 or regions, *spatial)."""
        return unlabeled.valid

    def _distance(self, prediction: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        return masked_mse(prediction, target, kept)
