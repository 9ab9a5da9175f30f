"""What the values of a mask mean, as nnU-Net reads ``dataset.json``."""

from dataclasses import dataclass

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_crossmatch.utilities.errors import some


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


def value_names(labels: dict) -> dict[int, str]:
    """What each value of a mask is called; where regions overlap, by all of them. ``labels`` is dataset.json's."""
    names: dict[int, list[str]] = {}
    for name, values in labels.items():
        for value in np.atleast_1d(values).tolist():
            names.setdefault(int(value), []).append(name)
    return {value: " and ".join(of_value) for value, of_value in sorted(names.items())}


def label_mistakes(dataset: dict) -> list[str]:
    """What nnU-Net's training would stop at, in ``labels`` and ``regions_class_order`` of ``dataset.json``."""
    labels = {name: tuple(np.atleast_1d(value).tolist()) for name, value in dataset["labels"].items()}
    values = sorted({int(value) for several in labels.values() for value in several})
    mistakes = []
    if values != list(range(len(values))):
        mistakes.append(
            f"dataset.json: the labels have the values {some(list(map(str, values)), 10)}, but nnU-Net wants "
            f"0 to {len(values) - 1} without a gap. Renumber them there and in the masks."
        )
    elif labels.get("ignore", (values[-1],)) != (values[-1],):
        mistakes.append(
            f"dataset.json: ignore is {some(list(map(str, labels['ignore'])))}, but nnU-Net wants it to be the highest "
            f"label, {values[-1]}. Renumber them there and in the masks."
        )
    if any(len(several) > 1 for name, several in labels.items() if name != "ignore"):
        regions = [name for name, several in labels.items() if name != "ignore" and any(several)]
        order = dataset.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(regions):
            mistakes.append(
                "dataset.json: labels has regions, so regions_class_order needs one value for each of "
                f"{some(regions, 10)}: what a mask gets there, later ones over earlier ones. It "
                f"{'is missing' if order is None else f'is {order}'}."
            )
    return mistakes
