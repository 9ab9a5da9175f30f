"""CrossMatch as nnU-Net trainers."""

from nnunetv2_crossmatch.methods.crossmatch import CrossMatch as CrossMatchPaper
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchConstants as CrossMatchPaperConstants
from nnunetv2_crossmatch.methods.crossmatch_drawn import CrossMatch, CrossMatchConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerCrossMatch(nnUNetTrainerSemiSupervised):
    """Stock nnU-Net until the network knows a class, then CrossMatch (arXiv 2405.00354) at nearly a stock step's cost.

    850 epochs cost less than stock nnU-Net's 1000, whenever self-training begins.
    """

    method_class = CrossMatch
    constants = CrossMatchConstants()
    epochs = 850


class nnUNetTrainerCrossMatchPaper(nnUNetTrainerSemiSupervised):
    """CrossMatch with the paper's losses and weights: every stream in every step, from the first step on."""

    method_class = CrossMatchPaper
    constants = CrossMatchPaperConstants(lambda_ip=2.0, lambda_kd=2.0, warmup=0.0, present_only=False)
