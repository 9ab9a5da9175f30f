"""What the values of a mask mean, as nnU-Net reads ``dataset.json``."""

from dataclasses import dataclass

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager


@dataclass(frozen=True)
class Labels:
    """What the values of a mask mean.

    Attributes:
        classes: foreground classes or regions, each with its values.
        known: every value a prediction may hold, background included.
        ignore: value of the reference's voxels that count nowhere.
    """

    classes: dict[str, tuple[int, ...]]
    known: tuple[int, ...]
    ignore: int | None


def read_labels(dataset: dict) -> Labels:
    """Foreground classes, or regions where the dataset has them, as nnU-Net reads ``dataset.json``."""
    manager = LabelManager(dataset["labels"], regions_class_order=None, force_use_labels=True)
    values = {name: tuple(np.atleast_1d(value).tolist()) for name, value in dataset["labels"].items()}
    return Labels(
        classes={name: value for name, value in values.items() if name != "ignore" and any(value)},
        known=tuple(int(label) for label in manager.all_labels),
        ignore=manager.ignore_label,
    )
