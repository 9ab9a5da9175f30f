"""ACTION and ACTION++ as nnU-Net trainers."""

from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlus, ACTIONPlusPlusConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerACTION(nnUNetTrainerSemiSupervised):
    """ACTION (arXiv 2206.02307): its three stages share the epochs.

    400 epochs (the paper's 100 + 100 + 200, and near its code's 90 000 steps) cost less than stock nnU-Net's 1000.
    """

    epochs = 400
    constants = ACTIONConstants()
    method_class: type[ACTION] = ACTION


class nnUNetTrainerACTIONPlusPlus(nnUNetTrainerACTION):
    """ACTION++ (arXiv 2304.02689): adaptive anatomical contrast on labeled voxels, a temperature that moves."""

    constants = ACTIONPlusPlusConstants()
    method_class = ACTIONPlusPlus
