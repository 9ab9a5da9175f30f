"""nnUNetv2_crossmatch trainers."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from nnunetv2_crossmatch.commands.shared import Commands, add_command, say_next
from nnunetv2_crossmatch.utilities.devices import device_option
from nnunetv2_crossmatch.utilities.tables import percent

if TYPE_CHECKING:
    from nnunetv2_crossmatch.trainers.catalog import Entry, Measured


def add(commands: Commands) -> None:
    command = add_command(
        commands, "trainers", "which trainers there are: idea, cost, what was measured, and which to begin with"
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.trainers.catalog import BEGIN_WITH, entries

    found = entries()
    if arguments.json:
        print(json.dumps([_as_json(entry, entry.name == BEGIN_WITH) for entry in found], indent=2))
        return
    for entry in found:
        print(*_as_text(entry), "", sep="\n")
    print("Costs: FLOPs of a step over plain nnU-Net's, which has 1000 epochs. Dice: percent, of small networks.")
    print(f"Begin with {BEGIN_WITH}.")
    say_next(f"nnUNetv2_train DATASET CONFIG FOLD -tr {BEGIN_WITH}{device_option()}")


def _as_json(entry: Entry, begin_with: bool) -> dict:
    measured = [{**asdict(one), "gap_closed": one.gap_closed and round(one.gap_closed, 3)} for one in entry.measured]
    return {**asdict(entry), "begin_with": begin_with, "measured": measured}


def _as_text(entry: Entry) -> list[str]:
    regions = "regions" if entry.regions else "no regions"
    lines = [entry.name, f"  {entry.idea}", f"  a step costs {entry.step_cost:.2f}, {entry.epochs} epochs, {regions}"]
    return (
        [*lines, *(f"  {_figure(one)}" for one in entry.measured)]
        if entry.measured
        else [*lines, "  Dice: not measured"]
    )


def _figure(one: Measured) -> str:
    gap = "gap not measured" if one.gap_closed is None else f"{one.gap_closed:.0%} of the gap to all labels closed"
    return f"{one.bench}: Dice {percent(one.dice)}, plain nnU-Net {percent(one.stock)}, {gap}"
