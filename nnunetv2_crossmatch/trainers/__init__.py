"""What nnU-Net looks up by name: every method's trainer, variants (``_<N>epochs``, ``_smoke``) and rounds of it.

nnU-Net asks every trainer module for every name, so nothing is imported before a name is ours.
"""

import importlib
import re
import sys
from functools import cache

from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.trainers.names import PREFIX, meant_trainer
from nnunetv2_crossmatch.utilities.near import did_you_mean

METHODS = {  # trainer: module
    "nnUNetTrainerCrossMatch": "crossmatch",
    "nnUNetTrainerCrossMatchFromStock": "from_stock",
    "nnUNetTrainerCrossMatchPaper": "crossmatch",
    "nnUNetTrainerACTION": "action",
    "nnUNetTrainerACTIONPlusPlus": "action",
    "nnUNetTrainerMeanTeacher": "baselines",
    "nnUNetTrainerUAMT": "baselines",
    "nnUNetTrainerICT": "baselines",
    "nnUNetTrainerCPS": "baselines",
    "nnUNetTrainerFixMatch": "baselines",
    "nnUNetTrainerUniMatch": "baselines",
    "nnUNetTrainerBCP": "baselines",
    "nnUNetTrainerPseudoLabel": "pseudo_label",
}
_VARIANT = re.compile(r"(?P<trainer>nnUNetTrainer[A-Za-z0-9]+)_(?:(?P<epochs>[1-9]\d*)epochs?|(?P<smoke>smoke))")


def __getattr__(name: str) -> type:
    if round_ := Round.parse(name):
        student = __getattr__(round_.student)
        doc = f"Round {round_.number} of self-training."
        globals()[name] = type(
            name, (student,), {"__module__": __name__, "__doc__": doc, "teacher": round_.before.trainer}
        )
        return globals()[name]
    variant = _VARIANT.fullmatch(name)
    trainer = variant["trainer"] if variant else name
    if trainer not in METHODS:
        if name.startswith(PREFIX):
            _ask_once(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    cls = getattr(importlib.import_module(f"{__name__}.{METHODS[trainer]}"), trainer)
    if variant:
        length = (
            {"epochs": 2, "iterations_per_epoch": 3, "val_iterations_per_epoch": 2, "ready_at": 1}
            if variant["smoke"]
            else {"epochs": int(variant["epochs"])}
        )
        cls = type(name, (cls,), {"__module__": __name__, "__doc__": f"{trainer}, another length.", **length})
    globals()[name] = cls  # the same class at the next look-up, as pickling wants
    return cls


@cache
def _ask_once(name: str) -> None:
    """nnU-Net says where it has looked, and not which trainers there are; it goes on to look elsewhere after this."""
    if meant := meant_trainer(name, METHODS):
        print(f"No trainer is called {name}.{did_you_mean(meant)}", file=sys.stderr, flush=True)
