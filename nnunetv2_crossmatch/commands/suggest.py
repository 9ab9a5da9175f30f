"""nnUNetv2_crossmatch suggest."""

import argparse
import shlex
import sys

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    add_teacher,
    as_device,
    find_dataset,
    say_next,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "suggest",
        "which unlabeled scans to annotate next, with a draft of each to correct",
        "-d 4 -c 3d_fullres --scans 10",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-chk", "-np", "-device")
    command.add_argument("--scans", type=int, default=10, metavar="N", help="how many scans (default: %(default)s)")
    add_teacher(command, "whose models are asked")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.self_training.suggest import PAGE, TABLE, suggest
    from nnunetv2_crossmatch.utilities.errors import some

    dataset = find_dataset(arguments.d)
    planned = Planned(dataset, dataset.plans(arguments.p), arguments.c)
    device = as_device(arguments.device)
    done = suggest(planned, arguments.tr, arguments.f, arguments.scans, arguments.chk, device, arguments.np)
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"Annotate these next (disagreement of {done.members}):")
    for case, share in done.chosen.items():
        print(f"  {case}  {share:.0%}")
    if done.odd:
        first = f"{done.folder / PAGE} says why"
        print(f"{len(done.odd)} scans are unlike the labeled ones and not suggested ({some(done.odd)}); {first}.")
    if done.corrected:
        print(f"{len(done.corrected)} drafts have been corrected and stay as they are: {some(done.corrected)}.")
    print(f"With pictures: {done.folder / PAGE}\nAll scans: {done.folder / TABLE}\nDrafts to correct: {done.drafts}")
    say_next(f"nnUNetv2_crossmatch annotated -d {dataset.name} {shlex.quote(str(done.drafts))}")
