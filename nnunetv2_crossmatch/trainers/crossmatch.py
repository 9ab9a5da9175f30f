"""CrossMatch as nnU-Net trainers."""

from dataclasses import replace

from torch import nn

from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerCrossMatch(nnUNetTrainerSemiSupervised):
    """CrossMatch (arXiv 2405.00354) with the constants that train best in nnU-Net's setting."""

    constants = CrossMatchConstants()

    def build_method(self, network: nn.Module) -> CrossMatch:
        return CrossMatch(self.constants, network, regions=self.label_manager.has_regions)


class nnUNetTrainerCrossMatchEMA(nnUNetTrainerCrossMatch):
    """CrossMatch whose weak view is labelled by an exponential moving average of the network."""

    constants = replace(nnUNetTrainerCrossMatch.constants, ema_decay=0.99)


class nnUNetTrainerCrossMatchPaper(nnUNetTrainerCrossMatch):
    """CrossMatch as published: hard pseudo-labels from the first step, Dice over all classes."""

    constants = replace(nnUNetTrainerCrossMatch.constants, warmup=0.0, present_only=False)
