"""FixMatch: the confident labels of the weak view teach the strong view.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv 2001.07685. With CutMix for segmentation: arXiv 1906.01916; so in the repository of UniMatch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.masked_cross_entropy import masked_cross_entropy
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView
from nnunetv2_crossmatch.views.target import strong_mix


@dataclass(frozen=True)
class FixMatchConstants(Constants):
    """Constants of L = L_nnU-Net + weight L_strong.

    weight: >= 0. Paper, and 1/2 (CE + L_strong) for segmentation, where the supervised term is cross entropy alone.
        Here it is nnU-Net's CE + Dice: the two cross entropies keep their ratio, Dice is added to the labeled side.
    threshold: confidence from which a voxel's label counts, in [0, 1]. Paper.
    p_cutmix: share of the strong views with a pasted box, in [0, 1]. UniMatch's.
    ema_decay: of the average that labels, in [0, 1). Paper: the network labels; chosen, as CrossMatch's.
    strong_view: its ranges.
    """

    weight: float = 1.0
    threshold: float = 0.95
    p_cutmix: float = 0.5
    ema_decay: float = 0.999
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        self._require("[0, inf)", "weight")
        self._require("[0, 1]", "threshold", "p_cutmix")
        self._require("[0, 1)", "ema_decay")


class FixMatch(Method):
    """The moving average labels, once the network knows a class: hard labels of one that does not teach background.

    A voxel that is not confident counts nowhere; it is not background.
    """

    waits = True
    constants: FixMatchConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        return {"strong": self.constants.weight}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        c, weak = self.constants, unlabeled.image
        with torch.no_grad():
            logits = network.twin(self.teacher.network).logits(weak)
        label = self.pseudo_label(logits, unlabeled)

        self.partner.draw(len(weak))
        mixed, target = strong_mix(self.strong_view(unlabeled), label, self.partner, c.p_cutmix)
        logits = network.logits(mixed)
        self.curves["kept_share"] = label.kept_share(logits.shape[1])
        self.curves["agreement_strong_view"] = target.agreement(logits)
        yield {"strong": masked_cross_entropy(logits, target.label, target.kept, target.valid)}
