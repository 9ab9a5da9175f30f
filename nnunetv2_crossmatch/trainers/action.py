"""ACTION and ACTION++ as nnU-Net trainers."""

from collections.abc import Callable

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer

from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlus, ACTIONPlusPlusConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class PolyLROfStages(PolyLRScheduler):
    """nnU-Net's learning rate, which begins anew with each stage: in the paper's code each is a training of its own.

    As in nnU-Net an epoch has one learning rate, here that of its first step. Where a stage begins within an epoch,
    the rate restarts with the epoch after.

    Args:
        optimizer, initial_lr, max_steps: as nnU-Net's, a step is an epoch.
        stage_done: share of a stage that is done, of the share of the training that is.
    """

    def __init__(
        self, optimizer: Optimizer, initial_lr: float, max_steps: int, stage_done: Callable[[float], float]
    ) -> None:
        self._stage_done = stage_done
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step and self.max_steps * self._stage_done(current_step / self.max_steps))


class nnUNetTrainerACTION(nnUNetTrainerSemiSupervised):
    """ACTION (arXiv 2206.02307): its three stages share the epochs, and the learning rate restarts in each.

    400 epochs (the paper's 100 + 100 + 200, and near its code's 90 000 steps) cost less than stock nnU-Net's 1000.
    """

    epochs = 400
    constants = ACTIONConstants()
    method_class: type[ACTION] = ACTION

    def configure_optimizers(self) -> tuple[Optimizer, PolyLROfStages]:
        optimizer, _ = super().configure_optimizers()
        return optimizer, PolyLROfStages(optimizer, self.initial_lr, self.num_epochs, self.constants.stage_done)


class nnUNetTrainerACTIONPlusPlus(nnUNetTrainerACTION):
    """ACTION++ (arXiv 2304.02689): adaptive anatomical contrast on labeled voxels, temperatures that move."""

    constants = ACTIONPlusPlusConstants()
    method_class = ACTIONPlusPlus
