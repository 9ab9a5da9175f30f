"""One file per method, plain PyTorch. What every method has stands here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp
from typing import Any

from torch import Tensor, nn

from nnunetv2_crossmatch.networks.ema import EMATeacher
from nnunetv2_crossmatch.networks.split_unet import Outputs, SplitUNet
from nnunetv2_crossmatch.views.mixing import Partner
from nnunetv2_crossmatch.views.strong_view import strong_view, voxel_edges
from nnunetv2_crossmatch.views.target import PseudoLabel

SUPERVISED = "supervised"  # the name of nnU-Net's own loss


@dataclass(frozen=True)
class UnlabeledBatch:
    """The weak view: unlabeled patches with nnU-Net's geometry and no intensity augmentation.

    image: (batch, channels, *spatial).
    valid: bool (batch, 1, *spatial), False where the patch was padded and in the zero background that
        nnU-Net cropped away or masked; such voxels count in no loss.
    """

    image: Tensor
    valid: Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """nnU-Net's labeled batch, augmented as nnU-Net does.

    image: (batch, channels, *spatial).
    label: class index (batch, 1, *spatial), or with regions one binary map each (batch, regions, *spatial).
    valid: bool (batch, 1, *spatial), False where the label is nnU-Net's ignore label.
    loss: nnU-Net's own loss of what the network's forward returns for ``image``.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    loss: Callable[[Outputs], Tensor]


@dataclass(frozen=True)
class Constants:
    """Base of the methods' constants."""

    def _require(self, interval: str, *names: str) -> None:
        """Each named constant that is not None lies in the interval, written as in "[0, 1)".

        Raises:
            ValueError: names the constant, the interval and the value.
        """
        low, high = map(float, interval[1:-1].split(","))
        for name in names:
            value = getattr(self, name)
            if value is None or low < value < high:
                continue
            if not ((value == low and interval[0] == "[") or (value == high and interval[-1] == "]")):
                raise ValueError(f"{name} must be in {interval}, got {value}")


def ramp_up(progress: float) -> float:
    """exp(-5 (1 - progress)^2), from 0.007 to 1: the field's weight of a consistency loss (arXiv 1610.02242)."""
    return exp(-5 * (1 - progress) ** 2)


class Method(nn.Module, ABC):
    """A semi-supervised method. It knows the network and the batches, and nothing of nnU-Net.

    State that training needs and inference does not (a teacher, heads, banks) is registered as
    submodules and buffers; it is saved with the checkpoint, apart from the network's weights. Parameters
    that require a gradient are trained by nnU-Net's optimizer together with the network's.

    Under DDP a Dice or a mean in a method's losses is each process's own, of its own samples, and the gradients are
    averaged. A Dice of the joint batch is something else, so more processes with fewer samples each train a little
    differently. What a method shares between processes its class says.

    Args:
        constants: written to the run's folder. With an ``ema_decay`` among them that is not None the method has
            a teacher; with a ``warmup`` its losses have weight 0 for that share of the training.
        student: the network, to copy; it is trained by nnU-Net's optimizer.
        patch: size of the patch in voxels, 2 or 3 axes.
        regions: nnU-Net's region-based training: a sigmoid per channel instead of the softmax.
        spacing: mm per voxel along each axis of the patch; None: the same along all.
        batch_dice: nnU-Net's, from the plans: Dice of all samples together, not the mean of each one's.

    Attributes:
        supports_regions: whether the method can be trained with regions, which overlap.
        waits: whether its losses have weight 0 until the network knows a class (trainers/readiness.py).
        halves: whether it takes half of the labeled and half of the unlabeled batch a step.
        started: progress at which the network was ready and the losses came in; None while they wait.
        taught: bool (classes or regions,), those that the unlabeled scans may teach; None: all.
        teacher: moving average of the network, which it follows after each step.
        partner: the sample that each unlabeled sample is mixed with; its ``draw`` begins a step.
        curves: ratios of the last step, name -> (numerator, denominator), each a scalar or one value per
            class. Summed over an epoch, then divided. The caller empties it before each step.
        progress: share of the training that is done, in [0, 1).
        stages: (progress, name) of each stage the training passes through, in order; logged and drawn.
    """

    supports_regions = True
    waits = False
    halves = False
    teacher: EMATeacher

    def __init__(
        self,
        constants: Any,
        student: nn.Module,
        *,
        patch: tuple[int, ...],
        regions: bool = False,
        spacing: tuple[float, ...] | None = None,
        batch_dice: bool = True,
    ) -> None:
        super().__init__()
        self.constants = constants
        self.regions = regions
        self.batch_dice = batch_dice
        self.voxel = voxel_edges(spacing, patch)
        self.started: float | None = None
        self.taught: Tensor | None = None
        self.has_teacher = getattr(constants, "ema_decay", None) is not None
        if self.has_teacher:
            self.teacher = EMATeacher(student)
        self.partner = Partner()
        self.curves: dict[str, tuple[Tensor, Tensor]] = {}
        self.progress = 0.0
        self.stages: tuple[tuple[float, str], ...] = ()

    def begin_step(self, progress: float) -> None:
        """Called before each step with the share of the training that is done."""
        self.progress = progress

    def weights(self, progress: float) -> dict[str, float]:
        """:meth:`weights_after_warmup`; during the warm-up, or while it waits, 0 for all but nnU-Net's own loss.

        All zero skips the unlabeled part of the step: what is left is the supervised step.
        """
        weights = self.weights_after_warmup(progress)
        waiting = self.waits and self.started is None
        if progress >= getattr(self.constants, "warmup", 0.0) and not waiting:
            return weights
        return {name: 0.0 for name in weights if name != SUPERVISED}

    @abstractmethod
    def weights_after_warmup(self, progress: float) -> dict[str, float]:
        """Weight of each named loss when ``progress`` (0 to 1) of the training is done.

        nnU-Net's own loss (``SUPERVISED``) has weight 1 unless it stands here with 0.
        """

    def strong_view(self, unlabeled: UnlabeledBatch) -> Tensor:
        """A freshly drawn strong view of the weak one; the ranges are the method's constant ``strong_view``."""
        return strong_view(unlabeled.image, unlabeled.valid, self.voxel, self.constants.strong_view)

    def pseudo_label(self, logits: Tensor, unlabeled: UnlabeledBatch) -> PseudoLabel:
        """Of the classes that may be taught, from the method's constant ``threshold`` on."""
        kept = {"threshold": self.constants.threshold, "taught": self.taught}
        return PseudoLabel.of(logits, unlabeled.valid, regions=self.regions, **kept)

    def ema_decay(self, progress: float) -> float:
        """Decay of the teacher's moving average when ``progress`` of the training is done, in [0, 1)."""
        return self.constants.ema_decay

    @abstractmethod
    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of one graph at a time, named as in :meth:`weights` and not yet weighted.

        The caller multiplies, adds, calls backward and empties the dict before it asks for the next ones, so a
        graph lives no longer than its stream, if no name here holds a tensor of it. Losses of one name add up
        over the step. A method that needs the labeled graph itself yields ``labeled.loss(outputs)`` as
        ``SUPERVISED``; for all others the caller takes the labeled batch through nnU-Net's forward when the
        last loss has been yielded.
        """

    def after_step(self, network: nn.Module) -> None:
        """Called after each optimizer step with the network."""
        if self.has_teacher:
            self.teacher.update(network, self.ema_decay(self.progress))
