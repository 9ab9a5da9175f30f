"""UniMatch: FixMatch with two strong views and a stream of dropped features.

Yang, Qi, Feng, Zhang, Shi, "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation",
CVPR 2023, arXiv 2208.09910; medical images in its repository.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.split_unet import SplitUNet, draw_channel_masks, drop_channels
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView
from nnunetv2_crossmatch.views.target import PseudoLabel, probabilities, strong_mix


@dataclass(frozen=True)
class UniMatchConstants(Constants):
    """Constants of L = L_nnU-Net + lambda_strong (L_s1 + L_s2) + lambda_fp L_fp.

    lambda_strong, lambda_fp: >= 0. Its code for medical images has
        1/2 [1/2 (CE + Dice) + 1/4 (L_s1 + L_s2) + 1/2 L_fp]; four times that has nnU-Net's CE + Dice, 1/2 and 1.
    threshold: confidence from which a voxel's label counts, in [0, 1]. Paper.
    p_drop: share of feature maps dropped, in [0, 1). Paper.
    p_cutmix: share of each strong view's samples with a pasted box, in [0, 1]. Paper's code.
    ema_decay: of the average that labels, in [0, 1). Paper: the network labels; chosen, as CrossMatch's.
    strong_view: its ranges.
    """

    lambda_strong: float = 0.5
    lambda_fp: float = 1.0
    threshold: float = 0.95
    p_drop: float = 0.5
    p_cutmix: float = 0.5
    ema_decay: float = 0.999
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        self._require("[0, inf)", "lambda_strong", "lambda_fp")
        self._require("[0, 1]", "threshold", "p_cutmix")
        self._require("[0, 1)", "p_drop", "ema_decay")


class UniMatch(Method):
    """Three streams, taught by the moving average's label of the weak view, once the network knows a class."""

    waits = True
    constants: UniMatchConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        return {"strong": self.constants.lambda_strong, "fp": self.constants.lambda_fp}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        c, weak = self.constants, unlabeled.image
        with torch.no_grad():
            logits = network.twin(self.teacher.network).logits(weak)
        label = self.pseudo_label(logits, unlabeled)
        self.curves["kept_share"] = label.kept_share(logits.shape[1])
        del logits  # not beside the streams
        yield {"fp": self._learn("dropout", self._decode_dropped(network, weak), label)}

        self.partner.draw(len(weak))
        for view in "12":
            mixed, target = strong_mix(self.strong_view(unlabeled), label, self.partner, c.p_cutmix, view)
            yield {"strong": self._learn(f"strong_view{view}", network.logits(mixed), target)}

    def _decode_dropped(self, network: SplitUNet, image: Tensor) -> Tensor:
        features = network.encode(image)
        return network.decode(drop_channels(features, draw_channel_masks(features, self.constants.p_drop)))

    def _learn(self, stream: str, logits: Tensor, target: PseudoLabel) -> Tensor:
        self.curves[f"agreement_{stream}"] = target.agreement(logits)
        p = probabilities(logits, regions=self.regions)
        return masked_dice_loss(p, target.label, target.kept, complement=self.regions)
