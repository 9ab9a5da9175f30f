"""CrossMatch as nnU-Net trainers."""

from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchConstants
from nnunetv2_crossmatch.methods.crossmatch_paper import CrossMatchPaper, CrossMatchPaperConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerCrossMatch(nnUNetTrainerSemiSupervised):
    """Stock nnU-Net until the network knows a class, then CrossMatch (arXiv 2405.00354) at nearly a stock step's cost.

    750 epochs cost less than stock nnU-Net's 1000, whenever self-training begins, by FLOPs and by a GPU's time.
    """

    method_class = CrossMatch
    constants = CrossMatchConstants()
    epochs = 750


class nnUNetTrainerCrossMatchPaper(nnUNetTrainerSemiSupervised):
    """CrossMatch with the paper's losses and weights: every stream in every step, from the first step on."""

    method_class = CrossMatchPaper
    constants = CrossMatchPaperConstants()
