"""CPS: two networks of different initial weights, each taught by the other's labels.

Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
arXiv 2106.01226. Constants: SSL4MIS.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_crossmatch.losses.masked_cross_entropy import masked_cross_entropy
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch, ramp_up
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views.target import PseudoLabel

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class CPSConstants(Constants):
    """Constants of L = L_nnU-Net + L_nnU-Net of the second network + weight ramp_up L_cps.

    weight: when the training ends, >= 0. SSL4MIS: 0.1 for each network beside its 1/2 (CE + Dice), so 0.2 beside
        nnU-Net's CE + Dice.
    """

    weight: float = 0.2

    def __post_init__(self) -> None:
        self._require("[0, inf)", "weight")


class CPS(Method):
    """nnU-Net's network is used at inference, the second one only for training.

    As in SSL4MIS, and unlike the paper, the networks label for each other on unlabeled images alone and without
    CutMix. ``-pretrained_weights`` reach the first one.

    Every voxel has a label, however uncertain. The first network labels before any of the two graphs is
    made, so that there is one at a time; its forward pass is computed twice. The second draws its own weights.
    """

    constants: CPSConstants

    def __init__(self, constants: CPSConstants, student: nn.Module, **plan: Any) -> None:
        super().__init__(constants, student, **plan)
        self.second = deepcopy(student)
        for module in self.second.modules():  # nnU-Net's initialization of convolutions
            if isinstance(module, CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, a=0.01)

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        weight = self.constants.weight
        return {"cps": weight * ramp_up(progress), "supervised_second": float(weight > 0)}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        second = network.twin(self.second)
        with torch.no_grad():
            label = PseudoLabel.of(network.logits(unlabeled.image), unlabeled.valid, regions=self.regions)

        logits = second.logits(unlabeled.image)
        second_label = PseudoLabel.of(logits, unlabeled.valid, regions=self.regions)
        self.curves["agreement_second"] = label.agreement(logits)
        yield {"cps": masked_cross_entropy(logits, label.label, label.kept, label.kept)}
        del logits  # not beside the next ones

        logits = network.logits(unlabeled.image)
        yield {"cps": masked_cross_entropy(logits, second_label.label, second_label.kept, second_label.kept)}
        del logits

        yield {"supervised_second": labeled.loss(second.outputs(labeled.image))}
