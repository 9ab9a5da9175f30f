"""The field's baselines as nnU-Net trainers.

Epochs: as many tens as cost at most 0.8 of stock nnU-Net's 1000 by FLOPs, warm-up counted; those that wait for the
network are counted as if it were ready from the first epoch on.
"""

from nnunetv2_crossmatch.methods.bcp import BCP, BCPConstants
from nnunetv2_crossmatch.methods.cps import CPS, CPSConstants
from nnunetv2_crossmatch.methods.fixmatch import FixMatch, FixMatchConstants
from nnunetv2_crossmatch.methods.ict import ICT, ICTConstants
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherConstants
from nnunetv2_crossmatch.methods.uamt import UAMT, UAMTConstants
from nnunetv2_crossmatch.methods.unimatch import UniMatch, UniMatchConstants
from nnunetv2_crossmatch.trainers.semi_supervised import nnUNetTrainerSemiSupervised


class nnUNetTrainerMeanTeacher(nnUNetTrainerSemiSupervised):
    """Mean Teacher (arXiv 1703.01780): agree with the network's moving average, which sees noise."""

    method_class = MeanTeacher
    constants = MeanTeacherConstants()
    epochs = 360


class nnUNetTrainerUAMT(nnUNetTrainerSemiSupervised):
    """UA-MT (arXiv 1907.07034): Mean Teacher where eight teacher passes are certain."""

    method_class = UAMT
    constants = UAMTConstants()
    epochs = 160


class nnUNetTrainerICT(nnUNetTrainerSemiSupervised):
    """ICT (arXiv 1903.03825): the prediction of a mixture is the mixture of predictions."""

    method_class = ICT
    constants = ICTConstants()
    epochs = 350


class nnUNetTrainerCPS(nnUNetTrainerSemiSupervised):
    """CPS (arXiv 2106.01226): two networks label for each other."""

    method_class = CPS
    constants = CPSConstants()
    epochs = 190


class nnUNetTrainerFixMatch(nnUNetTrainerSemiSupervised):
    """FixMatch (arXiv 2001.07685): confident labels of the weak view teach the strong view."""

    method_class = FixMatch
    constants = FixMatchConstants()
    epochs = 350


class nnUNetTrainerUniMatch(nnUNetTrainerSemiSupervised):
    """UniMatch (arXiv 2208.09910): two strong views and dropped features learn from the weak view."""

    method_class = UniMatch
    constants = UniMatchConstants()
    epochs = 190


class nnUNetTrainerBCP(nnUNetTrainerSemiSupervised):
    """BCP (arXiv 2305.00673): labeled and unlabeled patches are pasted into each other."""

    method_class = BCP
    constants = BCPConstants()
    epochs = 600
