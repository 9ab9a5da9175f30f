"""One file per method, plain PyTorch. What every method has stands here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nnunetv2_crossmatch.networks.split_unet import Outputs, SplitUNet

SUPERVISED = "supervised"  # the name of nnU-Net's own loss


@dataclass(frozen=True)
class UnlabeledBatch:
    """The weak view: unlabelled patches with nnU-Net's geometry and no intensity augmentation.

    image: (batch, channels, *spatial).
    valid: bool (batch, 1, *spatial), False where the patch was padded and in the zero background that
        nnU-Net cropped away or masked; such voxels count in no loss.
    """

    image: Tensor
    valid: Tensor


@dataclass(frozen=True)
class LabeledBatch:
    """nnU-Net's labelled batch, augmented as nnU-Net does.

    image: (batch, channels, *spatial).
    label: class index (batch, 1, *spatial), or with regions one binary map each (batch, regions, *spatial).
    valid: bool (batch, 1, *spatial), False where the label is nnU-Net's ignore label.
    loss: nnU-Net's own loss of what the network's forward returns for ``image``.
    """

    image: Tensor
    label: Tensor
    valid: Tensor
    loss: Callable[[Outputs], Tensor]


class Method(nn.Module, ABC):
    """A semi-supervised method. It knows the network and the batches, and nothing of nnU-Net.

    State that training needs and inference does not (a teacher, heads, banks) is registered as
    submodules and buffers; it is saved with the checkpoint, apart from the network's weights. Parameters
    that require a gradient are trained by nnU-Net's optimiser together with the network's.

    Attributes:
        constants: a frozen dataclass, written to the run's folder.
        curves: ratios of the last step, name -> (numerator, denominator), each a scalar or one value per
            class. Summed over an epoch, then divided.
        progress: share of the training that is done, in [0, 1); set before each step.
        stages: (progress, name) of each stage the training passes through, in order; logged and drawn.
    """

    def __init__(self, constants: Any) -> None:
        super().__init__()
        self.constants = constants
        self.curves: dict[str, tuple[Tensor, Tensor]] = {}
        self.progress = 0.0
        self.stages: tuple[tuple[float, str], ...] = ()

    @abstractmethod
    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each named loss when ``progress`` (0 to 1) of the training is done.

        All zero skips the unlabelled part of the step: what is left is the supervised step. nnU-Net's own
        loss (``SUPERVISED``) has weight 1 unless it stands here with 0.
        """

    @abstractmethod
    def losses(
        self, network: SplitUNet, unlabeled: UnlabeledBatch, labeled: LabeledBatch
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of one graph at a time, named as in :meth:`weights` and not yet weighted.

        The caller multiplies, adds and calls backward before it asks for the next ones, so a graph lives
        no longer than its stream. Losses of one name add up over the step. A method that needs the
        labelled graph itself yields ``labeled.loss(outputs)`` as ``SUPERVISED``; for all others the caller
        takes the labelled batch through nnU-Net's forward when the last loss has been yielded.
        """

    def after_step(self, network: nn.Module) -> None:
        """Called after each optimiser step, e.g. to move a teacher."""
