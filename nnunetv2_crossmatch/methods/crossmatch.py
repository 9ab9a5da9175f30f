"""CrossMatch: self-distillation between image views and feature-dropout decodings, one stream drawn a step.

Zhao, Wang, Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with Perturbation
Strategies and Knowledge Distillation", IEEE JBHI 2024, arXiv 2405.00354, in nnU-Net's setting. The whole loss, all
streams in each step, is :mod:`crossmatch_paper`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.deep_supervision import deeply_supervised
from nnunetv2_crossmatch.losses.dice_cross_entropy import dice_cross_entropy
from nnunetv2_crossmatch.methods import SUPERVISED, Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.split_unet import Features, SplitUNet, draw_channel_masks, drop_channels
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView
from nnunetv2_crossmatch.views.target import PseudoLabel, strong_mix


@dataclass(frozen=True)
class CrossMatchConstants(Constants):
    """Constants of the loss of a joint batch, half labeled and half unlabeled.

    threshold: confidence from which a voxel of a pseudo-label counts, in [0, 1].
    weight: of the unlabeled voxels, >= 0 and at most 1, a labeled one's. 0 is nnU-Net's own training.
    ramp: share of the training over which the weight rises from 0, in [0, 1).
    ema_decay: of the average that labels, in [0, 1): it spans some 1000 steps. Mean Teacher, arXiv 1703.01780.
    lambda_ip, lambda_kd: the paper's weights of its image and its feature streams, >= 0: how often each is drawn.
        Both 0 are as weight 0.
    eta: share of L_dkd in the feature streams, in [0, 1]. Paper.
    p_weak, p_strong: share of feature maps dropped, in [0, 1). Paper: 0.5 -+ gamma/2, gamma = 0.5.
    p_cutmix: share of the strong views with a pasted box, in [0, 1]. Paper.
    p_foreground: share of the unlabeled patches around a voxel that the average sees a class in, in [0, 1]; nnU-Net's
        of the labeled ones is 0.33. 0 until it has been measured.
    strong_view: its ranges.
    """

    threshold: float = 0.9
    weight: float = 1.0
    ramp: float = 0.05
    ema_decay: float = 0.999
    lambda_ip: float = 1.0
    lambda_kd: float = 0.0
    eta: float = 0.3
    p_weak: float = 0.25
    p_strong: float = 0.75
    p_cutmix: float = 0.5
    p_foreground: float = 0.0
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        self._require("[0, 1]", "threshold", "weight", "eta", "p_cutmix", "p_foreground")
        self._require("[0, 1)", "ramp", "ema_decay", "p_weak", "p_strong")
        self._require("[0, inf)", "lambda_ip", "lambda_kd")


class Stream(NamedTuple):
    """What the student sees and what it learns; ``dropout`` and ``taught_through`` are shares of feature maps."""

    loss: str
    view: str
    dropout: float
    taught_through: float = 0.0


class CrossMatch(Method):
    """The moving average's label of the weak view teaches one stream of the unlabeled half.

    One forward and backward pass of as many samples as nnU-Net's, with its Dice + cross entropy over both halves, on
    every level of its deep supervision. Voxels below the threshold count nowhere. The streams are drawn with the
    paper's weights, so that the gradient's expectation is that of its sum, but for its Dice alone, which stands
    for all streams of a batch. Under DDP the Dice is each process's own.
    """

    waits = True
    halves = True
    constants: CrossMatchConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        c = self.constants
        return {SUPERVISED: 0.0, "joint": 1.0} if c.weight * (c.lambda_ip + c.lambda_kd) else {}

    def streams(self) -> dict[Stream, float]:
        """Every stream and its share of the steps."""
        c = self.constants
        streams = {Stream("ip", "strong", 0.0): c.lambda_ip}
        for dropout in (c.p_weak, c.p_strong):
            for view in ("weak", "strong"):
                streams[Stream("tkd", view, dropout)] = c.lambda_kd * (1 - c.eta) / 4
            streams[Stream("dkd", "strong", dropout, taught_through=dropout)] = c.lambda_kd * c.eta / 2
        return {stream: weight / (c.lambda_ip + c.lambda_kd) for stream, weight in streams.items()}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        c, count = self.constants, len(labeled.image)
        streams = self.streams()
        (stream,) = random.choices(list(streams), list(streams.values()))
        label = self._teach(network, unlabeled, stream.taught_through)
        image = unlabeled.image
        self.partner.draw(len(image))
        if stream.view == "strong":
            image, label = strong_mix(self.strong_view(unlabeled), label, self.partner, c.p_cutmix)

        def drop(features: Features) -> Features:
            masks = draw_channel_masks(features, stream.dropout)
            for mask in masks:
                mask[:count] = 1  # the labeled half stays whole
            return drop_channels(features, masks)

        outputs = network.outputs(torch.cat((labeled.image, image)), drop if stream.dropout else list)
        finest = outputs if isinstance(outputs, Tensor) else outputs[0]
        self.curves[f"agreement_{stream.view}_view{'_dropout' if stream.dropout else ''}"] = label.agreement(
            finest[count:]
        )
        # an ignore label is past the last class
        own = labeled.label.masked_fill(~labeled.valid, 0)
        target = torch.cat((own, label.label.to(own.dtype)))
        of_labeled = torch.where(labeled.valid, 1.0, -1.0).expand_as(own)
        weight = torch.cat((of_labeled, self._ramp() * label.kept))
        joint = partial(dice_cross_entropy, batch_dice=self.batch_dice)
        yield {"joint": deeply_supervised(joint, outputs, target, weight)}

    @torch.no_grad()
    def _teach(self, network: SplitUNet, unlabeled: UnlabeledBatch, dropout: float) -> PseudoLabel:
        teacher = network.twin(self.teacher.network)
        features = teacher.encode(unlabeled.image)
        if dropout:
            features = drop_channels(features, draw_channel_masks(features, dropout))
        logits = teacher.decode(features)
        label = self.pseudo_label(logits, unlabeled)
        self.curves["kept_share"] = label.kept_share(logits.shape[1])
        return label

    def _ramp(self) -> float:
        """Weight of an unlabeled voxel now."""
        c, since = self.constants, self.progress - (self.started or 0.0)
        return c.weight * (min(1.0, since / c.ramp) if c.ramp else 1.0)
