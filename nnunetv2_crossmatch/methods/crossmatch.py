"""CrossMatch: self-distillation between image views and feature-dropout decodings.

Zhao, Wang, Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with Perturbation
Strategies and Knowledge Distillation", IEEE JBHI 2024, arXiv 2405.00354.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.methods import Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.split_unet import Features, SplitUNet, draw_channel_masks, drop_channels
from nnunetv2_crossmatch.views.mixing import draw_boxes, paste
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView
from nnunetv2_crossmatch.views.target import PseudoLabel, probabilities


@dataclass(frozen=True)
class CrossMatchConstants(Constants):
    """Constants of the loss L = L_nnU-Net + lambda_ip L_ip + lambda_kd [(1 - eta) L_tkd + eta L_dkd].

    "Chosen" means: on Hippocampus with 4 labeled cases, by hidden labels of unlabeled ones, see scripts/README.md.
    The strong view and CutMix's boxes have theirs in views/strong_view.py and views/mixing.py.

    threshold: confidence from which a voxel of a pseudo-label counts, in [0, 1]. Paper 0.95 on ACDC, 0.85
        on LA (there times ln 2, so nearly everything counts). Chosen among 0, 0.75 and 0.95.
    lambda_ip, lambda_kd: weights, >= 0. With nnU-Net's loss as L_sup the paper's ratio is (2, 2), the
        authors' later code has (1, 1) for ACDC, taken here, and (1, 2) for LA.
    eta: share of L_dkd in the distillation, in [0, 1]. Paper.
    p_weak, p_strong: share of feature maps dropped, in [0, 1). Paper: 0.5 -+ gamma/2, gamma = 0.5.
    strong_views: 2 (paper), or 1: without the first, which learns from image perturbation alone.
    dropout_students: 4 (paper): both views through weak and strong feature dropout. Or 1: each step one of the four,
        drawn at random, with four times the weight; the gradient's expectation (before clipping) is that of all
        four, but for batches of one, whose pasted box has the step before's dropout.
    p_cutmix: share of the strong views with a pasted box, in [0, 1]. Paper.
    warmup: share of the training before the unlabeled losses come in, in [0, 1). Paper 0. Chosen: hard
        labels of a network that knows nothing yet teach it background, and with 0 it lost a class.
    present_only: Dice over the classes of the kept pseudo-label instead of over all. Paper: all. Chosen.
        The background stays in: without it a class was lost.
    ema_decay: None labels the weak view with the network itself (paper); a decay in [0, 1) with a moving
        average of its weights (Mean Teacher, arXiv 1703.01780, has 0.99 early in training).
    """

    threshold: float = 0.95
    lambda_ip: float = 1.0
    lambda_kd: float = 1.0
    eta: float = 0.3
    p_weak: float = 0.25
    p_strong: float = 0.75
    strong_views: int = 2
    dropout_students: int = 4
    p_cutmix: float = 0.5
    warmup: float = 0.15
    present_only: bool = True
    ema_decay: float | None = None
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        if self.strong_views not in (1, 2):
            raise ValueError(f"strong_views must be 1 or 2, got {self.strong_views}")
        if self.dropout_students not in (1, 4):
            raise ValueError(f"dropout_students must be 1 or 4, got {self.dropout_students}")
        self._require("[0, 1]", "threshold", "eta", "p_cutmix")
        self._require("[0, 1)", "p_weak", "p_strong", "warmup", "ema_decay")
        self._require("[0, inf)", "lambda_ip", "lambda_kd")


class Student(NamedTuple):
    """A decoding that learns: of which view, through which feature dropout; each is "weak" or "strong"."""

    view: str
    dropout: str


class CrossMatch(Method):
    """One set of weights; its plain decoding of the weak view, or its moving average's, teaches every other stream."""

    constants: CrossMatchConstants

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        c = self.constants
        return {"ip": c.lambda_ip, "tkd": c.lambda_kd * (1 - c.eta), "dkd": c.lambda_kd * c.eta}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """L_ip, L_tkd and L_dkd of arXiv 2405.00354, in the order of the paper's streams."""
        c, weak = self.constants, unlabeled.image
        self.partner.draw(len(weak))
        if c.strong_views == 2:
            strong1, box1 = self._draw_strong_view(unlabeled)
        strong2, box2 = self._draw_strong_view(unlabeled)
        students = self._draw_students()
        dropouts = list(dict.fromkeys(student.dropout for student in students))

        # the weak view: plain (the teacher of all), then through weak and strong feature dropout
        labels = {}
        with network.relay(weak) as features:
            label_n = self._teach(network, features, unlabeled)
            for dropout in dropouts:
                # the strong view's student learns the weak view's label of the same dropout
                learns = Student("weak", dropout) in students
                with torch.set_grad_enabled(learns):
                    logits = self._decode_dropped(network, features, dropout)
                labels[dropout] = self._pseudo_label(logits, unlabeled)
                if learns:
                    yield {"tkd": self._learn(f"dropout_{dropout}", logits, label_n) / len(students)}
                del logits  # holds the features and their gradients

        # the first strong view: image perturbation alone
        if c.strong_views == 2:
            target1 = label_n.mix(box1, self.partner, "n")
            mixed = paste(box1, strong1, self.partner.of("strong1", strong1))
            yield {"ip": self._learn("strong_view", network.logits(mixed), target1) / c.strong_views}

        # the second strong view: plain, then both perturbations at once
        target2 = label_n.mix(box2, self.partner, "n")
        targets = {}
        for i, (dropout, label) in enumerate(labels.items()):
            # named by number: in a batch of one the partner is the step before's, which may have had the other dropout
            targets[dropout] = label.mix(box2, self.partner, f"dropout_{i}")
        with network.relay(paste(box2, strong2, self.partner.of("strong2", strong2))) as features:
            yield {"ip": self._learn("strong_view", network.decode(features), target2) / c.strong_views}

            for student in students:
                if student.view == "strong":
                    logits = self._decode_dropped(network, features, student.dropout)
                    yield {
                        "tkd": self._learn("strong_view_dropout", logits, target2) / len(students),
                        "dkd": self._loss(logits, targets[student.dropout]) * 2 / len(students),
                    }
                    del logits

    def _draw_strong_view(self, unlabeled: UnlabeledBatch) -> tuple[Tensor, Tensor]:
        """A strong view of the batch, and the box in each sample into which its partner is pasted."""
        image = unlabeled.image
        strong = self.strong_view(unlabeled)
        return strong, draw_boxes(len(image), tuple(image.shape[2:]), self.constants.p_cutmix, image.device)

    @torch.no_grad()
    def _teach(self, network: SplitUNet, features: Features, unlabeled: UnlabeledBatch) -> PseudoLabel:
        if self.has_teacher:
            logits = network.twin(self.teacher.network).logits(unlabeled.image)
        else:
            logits = network.decode(features)
        label = self._pseudo_label(logits, unlabeled)
        self.curves["kept_share"] = label.kept_share(logits.shape[1])
        return label

    def _draw_students(self) -> list[Student]:
        """The students of this step."""
        everyone = [Student(view, dropout) for view in ("weak", "strong") for dropout in ("weak", "strong")]
        return everyone if self.constants.dropout_students == 4 else [everyone[int(torch.randint(4, ()))]]

    def _decode_dropped(self, network: SplitUNet, features: Features, dropout: str) -> Tensor:
        p = {"weak": self.constants.p_weak, "strong": self.constants.p_strong}[dropout]
        return network.decode(drop_channels(features, draw_channel_masks(features, p)))

    def _pseudo_label(self, logits: Tensor, unlabeled: UnlabeledBatch) -> PseudoLabel:
        return PseudoLabel.of(logits, unlabeled.valid, threshold=self.constants.threshold, regions=self.regions)

    def _loss(self, logits: Tensor, target: PseudoLabel) -> Tensor:
        p = probabilities(logits, regions=self.regions)
        present_only = self.constants.present_only
        return masked_dice_loss(p, target.label, target.kept, present_only=present_only, complement=self.regions)

    def _learn(self, stream: str, logits: Tensor, target: PseudoLabel) -> Tensor:
        """The loss, and on the side how far the stream agrees with its teacher on all valid voxels."""
        agreed, counted = self.curves.get(f"agreement_{stream}", (0, 0))
        more, voxels = target.agreement(logits)
        self.curves[f"agreement_{stream}"] = (agreed + more, counted + voxels)
        return self._loss(logits, target)
