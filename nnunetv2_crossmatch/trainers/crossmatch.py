"""CrossMatch as nnU-Net trainers."""

from torch import nn

from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerCrossMatch(nnUNetTrainerSemiSupervised):
    """CrossMatch (arXiv 2405.00354) with the constants that train best in nnU-Net's setting."""

    constants = CrossMatchConstants()

    def build_method(self, network: nn.Module) -> CrossMatch:
        return CrossMatch(self.constants, network, regions=self.label_manager.has_regions)
