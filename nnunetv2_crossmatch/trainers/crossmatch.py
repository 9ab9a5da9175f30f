"""CrossMatch as nnU-Net trainers."""

from dataclasses import replace

from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerCrossMatch(nnUNetTrainerSemiSupervised):
    """CrossMatch (arXiv 2405.00354) with the constants that train best in nnU-Net's setting."""

    method_class = CrossMatch
    constants = CrossMatchConstants()


class nnUNetTrainerCrossMatchEMA(nnUNetTrainerCrossMatch):
    """CrossMatch whose weak view is labeled by an exponential moving average of the network."""

    constants = replace(nnUNetTrainerCrossMatch.constants, ema_decay=0.99)


class nnUNetTrainerCrossMatchFast(nnUNetTrainerCrossMatch):
    """At half the cost: one strong view and one of the four feature-dropout students a step, with the moving average.

    With the network as its own teacher it was worse than supervised training, see scripts/README.md.
    """

    constants = replace(nnUNetTrainerCrossMatchEMA.constants, strong_views=1, dropout_students=1)
    epochs = 270


class nnUNetTrainerCrossMatchPaper(nnUNetTrainerCrossMatch):
    """CrossMatch with the paper's losses and weights: no warm-up, Dice over all classes, ACDC's threshold."""

    constants = CrossMatchConstants(
        threshold=0.95,
        lambda_ip=2.0,
        lambda_kd=2.0,
        eta=0.3,
        p_weak=0.25,
        p_strong=0.75,
        warmup=0.0,
        present_only=False,
        ema_decay=None,
    )
