"""nnUNetv2_crossmatch annotated."""

import argparse
import sys
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_arguments, add_command, find_dataset, say_next


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "annotated",
        "take over scans that you have annotated: from imagesUn to imagesTr, with their masks",
        "-d 4 corrected/",
    )
    add_arguments(command, "-d", "-np")
    command.add_argument(
        "labels", type=Path, metavar="LABELS", help="folder of the masks, CASE and the ending of the labeled ones"
    )
    command.add_argument(
        "--untouched",
        action="store_true",
        help="also take drafts and whole predictions (predictions/) that nobody changed: you have looked at them, and "
        "they are right",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.self_training.again import commands_again
    from nnunetv2_crossmatch.self_training.annotated import move_annotated
    from nnunetv2_crossmatch.utilities.errors import some

    dataset = find_dataset(arguments.d)
    done = move_annotated(dataset, arguments.labels, arguments.np, arguments.untouched)
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for fold, cases in done.apart.items():
        print(f"fold {fold} validates the patients of {some(cases)} and does not train on them.")
    if done.finished:
        print(f"Finished what was interrupted: {len(done.finished)} scans ({some(done.finished)}).")
    if done.there:
        print(f"{len(done.there)} were labeled already, with the same masks: {some(done.there)}.")
    if done.untouched:
        print(
            f"{len(done.untouched)} are as the model wrote them and stay unlabeled: {some(done.untouched)}. If they "
            "are right as they are, add --untouched."
        )
    print(f"{dataset.name}: {len(done.moved)} scans became labeled ones ({some(done.moved) or 'none'}).")
    if done.moved:
        print(
            "Old folds train on the new scans, too, and validate what they did. For new plans: "
            f"nnUNetv2_plan_and_preprocess -d {dataset.id} --clean"
        )
        say_next(*commands_again(dataset))
