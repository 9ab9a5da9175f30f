"""nnU-Net's look-up of trainers, without what it prints on its way."""

from contextlib import redirect_stdout
from io import StringIO

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name


def find_trainer_class(name: str) -> type[nnUNetTrainer]:
    """Raises RuntimeError: nnU-Net's, there is none of that name."""
    with redirect_stdout(StringIO()):  # every folder of nnUNet_extTrainer
        return recursive_find_trainer_class_by_name(name)
