"""What a user has to know of every trainer to choose one."""

import inspect
from dataclasses import dataclass

from nnunetv2_crossmatch import trainers

BEGIN_WITH = "nnUNetTrainerCrossMatch"
# FLOPs of a step over stock nnU-Net's, in 3D; once self-training has begun. How: methods/README.md
STEP_COSTS = {
    "nnUNetTrainerCrossMatch": 1.17,
    "nnUNetTrainerCrossMatchFromStock": 1.17,
    "nnUNetTrainerCrossMatchPaper": 6.35,
    "nnUNetTrainerACTION": 2.51,
    "nnUNetTrainerACTIONPlusPlus": 2.61,
    "nnUNetTrainerMeanTeacher": 2.33,
    "nnUNetTrainerUAMT": 5.01,
    "nnUNetTrainerICT": 2.33,
    "nnUNetTrainerCPS": 4.33,
    "nnUNetTrainerFixMatch": 2.33,
    "nnUNetTrainerUniMatch": 4.33,
    "nnUNetTrainerBCP": 1.33,
    "nnUNetTrainerPseudoLabel": 1.0,
}


@dataclass(frozen=True)
class Measured:
    """Mean foreground Dice on a bench; scripts/README.md says how it was measured.

    Attributes:
        dice: of the trainer.
        stock: of plain nnU-Net with the same labels.
        all_labels: of plain nnU-Net with the labels of all scans, on the same scans; None where it was not measured.
    """

    bench: str
    dice: float
    stock: float
    all_labels: float | None = None

    @property
    def gap_closed(self) -> float | None:
        """The trainer's share of what all labels would add; None where that is not known."""
        return None if self.all_labels is None else (self.dice - self.stock) / (self.all_labels - self.stock)


# scripts/README.md has what has changed since, and figures of former defaults
MEASURED = {
    "nnUNetTrainerCrossMatch": (
        Measured("LA, 8 scans, 6000 steps: test scans", 0.786, 0.785, 0.835),
        Measured("ACDC, 3 patients, 8000 steps: hidden labels after 80 %, seed 0", 0.753, 0.729),
        Measured("ACDC, 3 patients, 8000 steps: hidden labels after 80 %, seed 1", 0.765, 0.729),
        Measured("Hippocampus, 4 scans, 8000 steps: hidden labels after 80 %", 0.837, 0.837),
    ),
}


@dataclass(frozen=True)
class Entry:
    """A trainer, for those who choose.

    Attributes:
        idea: the first line of its docstring.
        step_cost: see :data:`STEP_COSTS`.
        regions: whether it can be trained with region-based labels.
        measured: empty where nothing was.
    """

    name: str
    idea: str
    step_cost: float
    epochs: int
    regions: bool
    measured: tuple[Measured, ...]


def entries() -> list[Entry]:
    """Every trainer of this package."""
    return [_entry(name) for name in trainers.METHODS]


def _entry(name: str) -> Entry:
    cls = getattr(trainers, name)
    method = getattr(cls, "method_class", None)  # none: stock nnU-Net's step, with nnU-Net's labels
    idea = inspect.cleandoc(cls.__doc__).partition("\n")[0].replace("``", "")
    regions = method is None or method.supports_regions
    return Entry(name, idea, STEP_COSTS[name], cls.epochs, regions, MEASURED.get(name, ()))
