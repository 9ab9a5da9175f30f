"""ACTION: similarity distillation as pre-training, then anatomical contrast with pseudo-labels.

You, Dai, Min, Staib, Duncan, "Bootstrapping Semi-supervised Medical Image Segmentation with
Anatomical-Aware Contrastive Distillation", IPMI 2023, arXiv 2206.02307.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from nnunetv2_crossmatch.losses.confident_cross_entropy import confident_cross_entropy
from nnunetv2_crossmatch.losses.regional_contrast import negative_classes, regional_contrast
from nnunetv2_crossmatch.losses.similarity_distillation import similarity_distillation
from nnunetv2_crossmatch.methods import SUPERVISED, Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.banks import Bank
from nnunetv2_crossmatch.networks.distributed import sum_over_processes
from nnunetv2_crossmatch.networks.ema import EMATeacher
from nnunetv2_crossmatch.networks.heads import GlobalHead, VoxelHead, WindowHead, mlp
from nnunetv2_crossmatch.networks.split_unet import Features, SplitUNet
from nnunetv2_crossmatch.networks.voxels import Voxels, draw_classes, of_union
from nnunetv2_crossmatch.views.mixing import draw_boxes, paste
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW, StrongView

EMBEDDING = {2: 512, 3: 128}  # channels of embeddings and representations by dimension of the patch, paper's code
WINDOW = {2: (8, 8), 3: (5, 4)}  # edge of a cell in voxels, cells a side: windows of 64^2 and 20^3, half overlapping


@dataclass(frozen=True)
class ACTIONConstants(Constants):
    """Constants of the stages' losses: lambda_global L_global | L_nnU-Net + lambda_global L_global +
    lambda_local L_local | L_nnU-Net + lambda_unsup L_unsup + lambda_anco L_anco.

    stage_i, stage_ii: shares of the steps, >= 0, together <= 1; stage iii has the rest. The paper's epochs
        are 100, 100, 200, its code's steps 30 000 each. A stage may begin within an epoch, so a run of one epoch
        has all three. Stage i has no supervised loss; 0 leaves it out of a run that has no steps to spare.
    lambda_global, lambda_local, lambda_unsup, lambda_anco: weights, >= 0. The paper's code has 1, 1, 1 and 0.01
        beside 1/2 (CE + Dice). nnU-Net's loss is CE + Dice, twice that, so theirs are twice as large, too:
        2 x 1 and 2 x 0.01. In stage i, which has no other loss, the gradient is twice the code's.
    ema_decay: of the teacher, in [0, 1). Paper.
    bank: entries of each of the two banks (embeddings, windows), >= 1. Paper. Of the windows one of each image
        is entered, drawn at random, so that a bank holds many images.
    student_temperature, teacher_temperature: of the similarity distillation, > 0. Paper's code.
    cutmix: share of the volume that the box pasted in stage iii has, in (0, 1). Paper.
    confident: confidence from which a pixel raises the weight of its image in L_unsup, in [0, 1]. Code.
    valid: confidence from which an unlabeled voxel takes part in L_anco, in [0, 1]. ReCo, arXiv 2104.04465.
    hard: the student's probability of the voxel's class below which it is a query, in [0, 1]. ReCo.
    queries, negatives: drawn for each class, >= 1. ReCo, but for one draw of negatives for all queries of a
        class, which costs a fraction of the memory.
    temperature: of L_anco, and of the draw of its negatives' classes, > 0. ReCo.
    strong_view: its ranges.
    """

    stage_i: float = 0.25
    stage_ii: float = 0.25
    lambda_global: float = 2.0
    lambda_local: float = 2.0
    lambda_unsup: float = 2.0
    lambda_anco: float = 0.02
    ema_decay: float = 0.99
    bank: int = 36
    student_temperature: float = 0.1
    teacher_temperature: float = 0.01
    cutmix: float = 0.5
    confident: float = 0.97
    valid: float = 0.7
    hard: float = 0.97
    queries: int = 256
    negatives: int = 512
    temperature: float = 0.5
    strong_view: StrongView = STRONG_VIEW

    def __post_init__(self) -> None:
        self._require("[0, 1]", "stage_i", "stage_ii", "confident", "valid", "hard")
        self._require("[0, 1)", "ema_decay")
        self._require("(0, 1)", "cutmix")
        self._require("(0, inf)", *(name for name in vars(self) if name.endswith("temperature")))
        self._require("[1, inf)", "bank", "queries", "negatives")
        self._require("[0, inf)", *(name for name in vars(self) if name.startswith("lambda_")))
        if self.stage_i + self.stage_ii > 1:
            raise ValueError(f"stage_i and stage_ii must leave a share >= 0, got {self.stage_i} and {self.stage_ii}")

    def stage_done(self, progress: float) -> float:
        """Share of the present stage that is done, from 0 to 1, when ``progress`` of the training is."""
        starts = (0.0, self.stage_i, self.stage_i + self.stage_ii, 1.0)
        start, end = next((s, e) for s, e in reversed([*pairwise(starts)]) if s <= progress and s < e)
        return (progress - start) / (end - start)


class ACTION(Method):
    """Three stages, one after the other, and one moving-average teacher throughout.

    As in the paper's code, the teacher of stage iii begins as the student (after the first step of the stage), and
    follows from there.

    Unlike the paper: stages i and ii distil the unlabeled patches alone (nnU-Net's labeled batch has no view
    without intensity augmentation), similarities are seen from the bank's mean (see
    :func:`similarity_distillation`), and padding counts nowhere (a window weighs what it has of valid voxels).

    Under DDP the banks and the classes' means are those of all processes together; queries and negatives
    are drawn by each process from its own samples, and a mean over patches or windows is each process's own.

    Args:
        constants: see :class:`ACTIONConstants`.
        student: copied for the teacher. Its encoder names its ``output_channels``.
        patch: size of the patch, 2 or 3 axes.
        regions: must be False: the contrast is between classes that exclude each other, and regions overlap.

    Raises:
        TypeError: a network whose levels cannot be reached.
    """

    supports_regions = False
    constants: ACTIONConstants
    contrasts: tuple[str, ...] = ("anco",)  # losses that need the labeled voxels' features

    def __init__(self, constants: ACTIONConstants, student: nn.Module, **plan: Any) -> None:
        super().__init__(constants, student, **plan)
        patch = plan["patch"]
        parts = {"encoder": ("stages",), "decoder": ("stages", "transpconvs", "seg_layers")}
        for half, names in parts.items():
            if missing := [name for name in names if not hasattr(getattr(student, half), name)]:
                raise TypeError(
                    f"{type(student).__name__}'s {half} has no {', '.join(missing)}. Plan with a PlainConvUNet or a "
                    "ResidualEncoderUNet to use this trainer."
                )
        c, levels = constants, list(student.encoder.output_channels)  # type: ignore[union-attr,arg-type]
        self.classes: int = student.decoder.num_classes  # type: ignore[union-attr,assignment]
        self.embedding = EMBEDDING[len(patch)]
        self.global_head = GlobalHead(levels[-1], self.embedding)
        self.global_predictor = mlp(self.embedding, self.embedding)
        self.global_bank = Bank(c.bank, self.embedding)
        self.local_head = WindowHead(self.classes, patch, *WINDOW[len(patch)])
        self.local_predictor = mlp(self.local_head.channels, self.local_head.channels)
        self.local_bank = Bank(c.bank, self.local_head.channels)
        self.represent = VoxelHead(sum(levels), self.embedding)
        self.teacher_global = EMATeacher(self.global_head)
        self.teacher_local = EMATeacher(self.local_head)
        names = (
            "stage i: similarity distillation of the encoder, no supervised loss",
            "stage ii: supervised, similarity distillation of encoder and windows",
            "stage iii: supervised, pseudo-labels, anatomical contrast",
        )
        starts = (0.0, c.stage_i, c.stage_i + c.stage_ii)
        ends = (*starts[1:], 1.0)
        self.stages = tuple((start, name) for start, end, name in zip(starts, ends, names, strict=True) if start < end)

    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        c = self.constants
        if progress >= c.stage_i + c.stage_ii:
            return {"unsup": c.lambda_unsup, "anco": c.lambda_anco}
        if progress >= c.stage_i:
            return {"global": c.lambda_global, "local": c.lambda_local}
        # with all weights 0 every step is the supervised one
        return {SUPERVISED: float(c.lambda_global == 0), "global": c.lambda_global}

    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        weights = self.weights(self.progress)
        strong = self.strong_view(unlabeled)
        if "unsup" in weights:
            contrast = any(weights[name] for name in self.contrasts)
            mixed = self._mix(network, unlabeled, strong)
            yield self._fine_tune(network, mixed, labeled if contrast else None)
        else:
            yield self._distill(network, unlabeled, strong, local=bool(weights.get("local")))

    def after_step(self, network: nn.Module) -> None:
        fine_tuning = "unsup" in self.weights(self.progress)
        # the heads' teachers stop with stage ii, so they tell the first step of stage iii, in a continued run, too
        if fine_tuning and self.teacher.updates == self.teacher_global.updates:
            self.teacher.update(network, 0.0)
        super().after_step(network)
        if not fine_tuning:
            decay = self.ema_decay(self.progress)
            self.teacher_global.update(self.global_head, decay)
            self.teacher_local.update(self.local_head, decay)

    def _distill(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, strong: Tensor, *, local: bool
    ) -> dict[str, Tensor]:
        """L_global and L_local: weak view to the teacher, strong view to the student."""
        teacher, valid = network.twin(self.teacher.network), unlabeled.valid
        student_features = network.encode(strong)
        with torch.no_grad():
            features = teacher.encode(unlabeled.image)
            target = self.teacher_global.network(features[-1], valid)
        z = self.global_predictor(self.global_head(student_features[-1], valid))
        seen = valid.flatten(1).any(1)
        losses = {"global": _weighted_mean(self._similarity(self.global_bank, z, target), seen)}
        self.global_bank.push(target, seen)
        if local:
            with torch.no_grad():
                target, share = self.teacher_local.network(teacher.decode(features), valid)
            windows, _ = self.local_head(network.decode(student_features), valid)
            z = self.local_predictor(windows)
            loss = self._similarity(self.local_bank, z.flatten(0, 1), target.flatten(0, 1))
            losses["local"] = _weighted_mean(loss, share.flatten())
            # one of each image, drawn as its valid share; multinomial() would wait for the device
            one = (share / torch.empty_like(share).exponential_()).argmax(1)
            self.local_bank.push(target[torch.arange(len(one), device=one.device), one], share.any(1))
        return losses

    def _similarity(self, bank: Bank, student: Tensor, teacher: Tensor) -> Tensor:
        c = self.constants
        return similarity_distillation(
            student,
            teacher,
            bank.entries,
            bank.known,
            student_temperature=self._now(c.student_temperature),
            teacher_temperature=self._now(c.teacher_temperature),
        )

    def _fine_tune(
        self, network: SplitUNet, mixed: tuple[Tensor, ...], labeled: LabeledBatch | None
    ) -> dict[str, Tensor]:
        """L_unsup of what _mix() made, and with the labeled batch what contrasts both graphs' voxels, in one graph.

        The labeled graph comes last, so backward is through with it before it reaches the other one, most
        of which is computed only then.
        """
        c = self.constants
        image, label, confidence, valid = mixed
        outputs, levels = network.forward_levels(image, economical=labeled is not None)
        logits = _finest(outputs)
        with torch.no_grad():
            agreed = (logits.argmax(1, keepdim=True) == label) & valid
        self.curves["agreement_strong_view"] = (agreed.sum(), valid.sum())
        losses = {"unsup": confident_cross_entropy(logits, label, confidence, valid, threshold=c.confident)}
        if labeled is not None:
            pseudo = self._draw(levels, logits, label, valid & (confidence >= c.valid))
            outputs, levels = network.forward_levels(labeled.image)
            known = self._draw(levels, _finest(outputs), labeled.label, labeled.valid)
            losses[SUPERVISED] = labeled.loss(outputs)
            losses |= self._contrast(known, pseudo, levels, labeled)
        return losses

    @torch.no_grad()
    def _mix(self, network: SplitUNet, unlabeled: UnlabeledBatch, strong: Tensor) -> tuple[Tensor, ...]:
        """Strong view with a pasted box; the teacher's label, its confidence and the valid voxels follow it."""
        teacher = network.twin(self.teacher.network)
        probabilities = teacher.logits(unlabeled.image).softmax(1)
        confidence, label = probabilities.max(1, keepdim=True)
        predicted = [(label == k) & unlabeled.valid for k in range(self.classes)]
        confident = confidence >= self.constants.confident
        self.curves["kept_share"] = (
            torch.stack([(p & confident).sum() for p in predicted]),
            torch.stack([p.sum() for p in predicted]),
        )
        batch, _, *spatial = strong.shape
        self.partner.draw(batch)
        box = draw_boxes(batch, tuple(spatial), 1.0, strong.device, volumes=(self.constants.cutmix,) * 2)
        everything = {"image": strong, "label": label, "confidence": confidence, "valid": unlabeled.valid}
        return tuple(paste(box, own, self.partner.of(name, own)) for name, own in everything.items())

    def _draw(self, levels: Features, logits: Tensor, label: Tensor, valid: Tensor) -> Voxels:
        c = self.constants
        with torch.no_grad():
            own = label.long().clamp(max=self.classes - 1)  # an ignore label is past the last class, and not valid
            uncertain = logits.float().softmax(1).gather(1, own) < c.hard
            masks = [(label == k) & valid for k in range(self.classes)]
        return draw_classes(levels, masks, [mask & uncertain for mask in masks], c.negatives, c.queries)

    def _contrast(self, known: Voxels, pseudo: Voxels, levels: Features, labeled: LabeledBatch) -> dict[str, Tensor]:
        """L_anco over labeled voxels and those with a pseudo-label; ``levels`` are the labeled graph's."""
        c, counts = self.constants, known.counts + pseudo.counts
        with torch.no_grad():
            means, _ = self._means(known.sums + pseudo.sums, counts)
            origin = negative_classes(means, counts > 0, self.temperature)
            origin = torch.multinomial(origin, c.negatives, replacement=True)  # (classes, negatives)
            voxels = of_union(known.any, known.counts, pseudo.any, pseudo.counts)
            negatives = self.represent(voxels[origin, torch.arange(c.negatives, device=origin.device)])
        queries = of_union(known.hard, known.hard_counts, pseudo.hard, pseudo.hard_counts)
        return {
            "anco": regional_contrast(
                self.represent(queries),
                (known.hard_counts + pseudo.hard_counts > 0) & ((counts > 0).sum() > 1),
                means,
                negatives,
                counts > 0,
                temperature=self.temperature,
            )
        }

    @property
    def temperature(self) -> float:
        """Of the contrast, now."""
        return self.constants.temperature

    def _now(self, temperature: float) -> float:
        """What a temperature of the distillation is now."""
        return temperature

    def _means(self, sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean representations (classes, channels) of all processes' voxels, and how many these are.

        The head is linear, so the representation of the mean is the mean of the representations.
        """
        sums, counts = sum_over_processes(sums), sum_over_processes(counts)
        return self.represent(sums / counts[:, None].clamp(min=1)), counts


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def _finest(outputs: Tensor | list[Tensor]) -> Tensor:
    return (outputs if isinstance(outputs, Tensor) else outputs[0]).float()
