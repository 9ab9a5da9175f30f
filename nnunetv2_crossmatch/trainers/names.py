"""Which trainer a misspelt name means."""

import os
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.utilities.near import nearest

PREFIX = "nnUNetTrainer"
_LENGTH = re.compile(r"(?P<stem>.+?)(?P<length>_[1-9]\d*epochs?|_smoke)?")


def meant_trainer(name: str, ours: Collection[str]) -> str | None:
    """The trainer that is probably meant where there is none of that name; None if there is, or none is like it.

    Args:
        ours: names that take a length (``_50epochs``); nnU-Net's and the user's own are looked up in their files.
    """
    match = _LENGTH.fullmatch(name)
    if not match or match["stem"] in ours or name == PREFIX or Round.parse(name):
        return None
    known = known_trainers(ours)
    if name in known:
        return None
    if name.casefold().startswith(PREFIX.casefold()):
        return _nearest(match["stem"], ours, match["length"] or "") or _nearest(name, known)
    return nearest(name, known) or nearest(PREFIX + name, known)  # nnUNetTrainrCPS, CPS


def known_trainers(ours: Collection[str]) -> set[str]:
    """``ours``, nnU-Net's and the user's."""
    return {*ours, *_classes()}


def _nearest(name: str, known: Collection[str], length: str = "") -> str | None:
    """Compared without the prefix, which alone would make all of them alike."""
    bare = {trainer[len(PREFIX) :]: trainer for trainer in known}
    found = nearest(name[len(PREFIX) :], bare)
    return None if found is None else bare[found] + length


def _classes() -> set[str]:
    """Trainers in nnU-Net's files and in those of nnUNet_extTrainer. They are read and not imported, which is slow."""
    spec = find_spec("nnunetv2")
    folders = [Path(place) / "training" / PREFIX for place in (spec and spec.submodule_search_locations) or ()]
    folders += [Path(place) for place in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if place.strip()]
    return {
        name
        for folder in folders
        for file in folder.rglob("*.py")
        for name in re.findall(rf"^class ({PREFIX}\w*)", file.read_text(encoding="utf-8", errors="replace"), re.M)
    }
