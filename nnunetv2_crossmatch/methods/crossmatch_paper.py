"""CrossMatch as published: every stream in each step. :mod:`crossmatch` draws one.

Zhao, Wang, Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with Perturbation
Strategies and Knowledge Distillation", IEEE JBHI 2024, arXiv 2405.00354.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.split_unet import Features, SplitUNet, draw_channel_masks, drop_channels
from nnunetv2_crossmatch.views.mixing import draw_boxes, paste
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView
from nnunetv2_crossmatch.views.target import PseudoLabel, probabilities


@dataclass(frozen=True)
class CrossMatchPaperConstants(Constants):
    """Constants of the loss L = L_nnU-Net + lambda_ip L_ip + lambda_kd [(1 - eta) L_tkd + eta L_dkd].

    CutMix's boxes have theirs in views/mixing.py.

    threshold: confidence from which a voxel of a pseudo-label counts, in [0, 1]. Paper 0.95 on ACDC, 0.85
        on LA (there times ln 2, so nearly everything counts).
    lambda_ip, lambda_kd: weights, >= 0. Paper, with nnU-Net's loss as L_sup; the authors' later code has half of it
        for ACDC, and (1, 2) for LA.
    eta: share of L_dkd in the distillation, in [0, 1]. Paper.
    p_weak, p_strong: share of feature maps dropped, in [0, 1). Paper: 0.5 -+ gamma/2, gamma = 0.5.
    p_cutmix: share of the strong views with a pasted box, in [0, 1]. Paper.
    strong_view: its ranges.
    """

    threshold: float = 0.95
    lambda_ip: float = 2.0
    lambda_kd: float = 2.0
    eta: float = 0.3
    p_weak: float = 0.25
    p_strong: float = 0.75
    p_cutmix: float = 0.5
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        self._require("[0, 1]", "threshold", "eta", "p_cutmix")
        self._require("[0, 1)", "p_weak", "p_strong")
        self._require("[0, inf)", "lambda_ip", "lambda_kd")


class CrossMatchPaper(Method):
    """One set of weights; its plain decoding of the weak view teaches every other stream."""

    constants: CrossMatchPaperConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        c = self.constants
        return {"ip": c.lambda_ip, "tkd": c.lambda_kd * (1 - c.eta), "dkd": c.lambda_kd * c.eta}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """L_ip, L_tkd and L_dkd of arXiv 2405.00354, in the order of the paper's streams."""
        weak = unlabeled.image
        self.partner.draw(len(weak))
        strong1, box1 = self._draw_strong_view(unlabeled)
        strong2, box2 = self._draw_strong_view(unlabeled)

        # the weak view: plain (the teacher of all), then through weak and strong feature dropout
        labels = {}
        with network.relay(weak) as features:
            label_n = self._teach(network, features, unlabeled)
            for dropout in ("weak", "strong"):
                logits = self._decode_dropped(network, features, dropout)
                # the strong view's student learns the weak view's label of the same dropout
                labels[dropout] = self.pseudo_label(logits, unlabeled)
                yield {"tkd": self._learn(f"dropout_{dropout}", logits, label_n) / 4}
                del logits  # holds the features and their gradients

        # the first strong view: image perturbation alone
        target1 = label_n.mix(box1, self.partner, "n")
        mixed = paste(box1, strong1, self.partner.of("strong1", strong1))
        yield {"ip": self._learn("strong_view", network.logits(mixed), target1) / 2}

        # the second strong view: plain, then both perturbations at once
        target2 = label_n.mix(box2, self.partner, "n")
        targets = {dropout: label.mix(box2, self.partner, dropout) for dropout, label in labels.items()}
        with network.relay(paste(box2, strong2, self.partner.of("strong2", strong2))) as features:
            yield {"ip": self._learn("strong_view", network.decode(features), target2) / 2}

            for dropout in ("weak", "strong"):
                logits = self._decode_dropped(network, features, dropout)
                yield {
                    "tkd": self._learn("strong_view_dropout", logits, target2) / 4,
                    "dkd": self._loss(logits, targets[dropout]) / 2,
                }
                del logits

    def _draw_strong_view(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """A strong view of the batch, and the box in each sample into which its partner is pasted."""
        image = unlabeled.image
        box = draw_boxes(len(image), tuple(image.shape[2:]), self.constants.p_cutmix, image.device)
        return self.strong_view(unlabeled), box

    @torch.no_grad()
    def _teach(self, network: SplitUNet, features: Features, unlabeled: UnlabeledBatch) -> PseudoLabel:
        logits = network.decode(features)
        label = self.pseudo_label(logits, unlabeled)
        self.curves["kept_share"] = label.kept_share(logits.shape[1])
        return label

    def _decode_dropped(self, network: SplitUNet, features: Features, dropout: str) -> Tensor:
        p = {"weak": self.constants.p_weak, "strong": self.constants.p_strong}[dropout]
        return network.decode(drop_channels(features, draw_channel_masks(features, p)))

    def _loss(self, logits: Tensor, target: PseudoLabel) -> Tensor:
        p = probabilities(logits, regions=self.regions)
        return masked_dice_loss(p, target.label, target.kept, complement=self.regions)

    def _learn(self, stream: str, logits: Tensor, target: PseudoLabel) -> Tensor:
        """The loss, and on the side how far the stream agrees with its teacher on all valid voxels."""
        agreed, counted = self.curves.get(f"agreement_{stream}", (0, 0))
        more, voxels = target.agreement(logits)
        self.curves[f"agreement_{stream}"] = (agreed + more, counted + voxels)
        return self._loss(logits, target)
