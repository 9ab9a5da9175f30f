"""ICT: what the network says of a mixture is the mixture of what its teacher says.

Verma, Lamb, Kannala, Bengio, Lopez-Paz, "Interpolation Consistency Training for Semi-Supervised Learning",
IJCAI 2019, arXiv 1903.03825. Segmentation and constants: SSL4MIS.
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
class ICTConstants(Constants):
    """Constants of L = L_nnU-Net + weight ramp_up L_consistency.

    weight: when the training ends, >= 0. SSL4MIS: 0.1 beside 1/2 (CE + Dice), so 0.2 beside nnU-Net's CE + Dice.
    ema_decay: of the teacher, in [0, 1). SSL4MIS.
    alpha: a sample's share in the mixture is Beta(alpha, alpha), > 0. SSL4MIS.
    """

    weight: float = 0.2
    ema_decay: float = 0.99
    alpha: float = 0.2

    def __post_init__(self) -> None:
        self._require("[0, inf)", "weight")
        self._require("[0, 1)", "ema_decay")
        self._require("(0, inf)", "alpha")


class ICT(Method):
    """Every unlabeled sample is mixed with its partner; a voxel counts where both are valid."""

    constants: ICTConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        return {"consistency": self.constants.weight * ramp_up(progress)}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        image, valid, partner = unlabeled.image, unlabeled.valid, self.partner
        partner.draw(len(image))
        with torch.no_grad():
            target = probabilities(network.twin(self.teacher.network).logits(image), regions=self.regions)
            alpha = torch.full((len(image), *[1] * (image.ndim - 1)), self.constants.alpha, device=image.device)
            share = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()  # validation would wait for it
        mixed = torch.lerp(partner.of("image", image), image, share)
        target = torch.lerp(partner.of("target", target), target, share)
        prediction = probabilities(network.logits(mixed), regions=self.regions)
        yield {"consistency": masked_mse(prediction, target, valid & partner.of("valid", valid))}
