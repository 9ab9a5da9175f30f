"""UA-MT: Mean Teacher on the voxels of which the teacher is certain.

Yu, Wang, Li, Fu, Heng, "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium
Segmentation", MICCAI 2019, arXiv 1907.07034. Constants: SSL4MIS.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from nnunetv2_crossmatch.methods import UnlabeledBatch, ramp_up
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet


@dataclass(frozen=True)
class UAMTConstants(MeanTeacherConstants):
    """Mean Teacher's, without its warm-up as in SSL4MIS, and of the uncertainty.

    weight: see :class:`MeanTeacherConstants`; 0.1 beside 1/2 (CE + Dice) in SSL4MIS for this method, too.
    passes: of the teacher, >= 1, whose mean prediction has the entropy. Paper.
    threshold: share of the largest entropy, in [0, 1], below which a voxel counts when the training begins;
        it rises to 1 with the ramp. Paper.
    """

    warmup: float = 0.0
    passes: int = 8
    threshold: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("[1, inf)", "passes")
        self._require("[0, 1]", "threshold")


class UAMT(MeanTeacher):
    """nnU-Net's networks have no dropout, the paper's other source of chance: the passes differ by their noise.

    The squared difference is summed over the classes and halved, as in SSL4MIS, where Mean Teacher's is their mean.
    With two classes these are the same, and a region is two classes.
    """

    constants: UAMTConstants

    @torch.no_grad()
    def _kept(self, network: SplitUNet, unlabeled: UnlabeledBatch) -> Tensor:
        c = self.constants
        image = unlabeled.image
        mean = sum((self._teach(network, image) for _ in range(c.passes)), image.new_zeros(())) / c.passes
        mean = mean.clamp(1e-6, 1 - 1e-6)
        if self.regions:
            entropy, largest = -(mean * mean.log() + (1 - mean) * (1 - mean).log()), log(2)
        else:
            entropy, largest = -(mean * mean.log()).sum(1, keepdim=True), log(mean.shape[1])
        threshold = (c.threshold + (1 - c.threshold) * ramp_up(self.progress)) * largest
        certain = (entropy < threshold) & unlabeled.valid
        self.curves["kept_share"] = (certain.sum(), unlabeled.valid.expand_as(certain).sum())
        return certain

    def _distance(self, prediction: Tensor, target: Tensor, kept: Tensor) -> Tensor:
        halves = 1 if self.regions else prediction.shape[1] / 2
        return halves * super()._distance(prediction, target, kept)
