"""nnUNetv2_crossmatch pseudo-label."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    add_teacher,
    as_device,
    find_dataset,
    say_next,
)

if TYPE_CHECKING:
    from nnunetv2_crossmatch.self_training.predict import Written


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "pseudo-label",
        "let the trained model of each fold label the unlabeled scans, for nnUNetTrainerPseudoLabel",
        "-d 4 -c 3d_fullres -f 0 1",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-chk", "-np", "--threshold", "-device")
    add_teacher(command, "whose models label")
    command.add_argument("--overwrite", action="store_true", help="also replace labels that were corrected by hand")
    command.add_argument(
        "--review",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="marks saved by the page of nnUNetv2_crossmatch review: bad labels are left out",
    )
    command.set_defaults(run=run, np=3)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.self_training.marks import describe_marks, marked_out_now, take_review
    from nnunetv2_crossmatch.self_training.names import STUDENT, Round
    from nnunetv2_crossmatch.self_training.predict import write_pseudo_labels

    dataset = find_dataset(arguments.d)
    planned = Planned(dataset, dataset.plans(arguments.p), arguments.c)
    for file in arguments.review:
        fold, marks = take_review(planned, arguments.tr, file)
        print(f"fold {fold}: {len(marks)} marks from {file}")
    device = as_device(arguments.device)
    written_folds = write_pseudo_labels(
        planned,
        arguments.tr,
        arguments.f,
        arguments.threshold,
        arguments.chk,
        device,
        arguments.np,
        arguments.overwrite,
    )
    folds = []
    for fold, written in written_folds:
        show_written(f"fold {fold}", written)
        for line in describe_marks(marked_out_now(written.folder, dataset.json["file_ending"]), written.folder):
            print(f"fold {fold}: {line}")
        folds.append(fold)
    if of_round := Round.parse(arguments.tr):
        command = f"{planned.command('self-train')} -f {' '.join(map(str, folds))} -tr {of_round.teacher}"
        say_next(f"{command} --student {of_round.student} --rounds {of_round.number + 1}")
        return
    print("Look at the labels and correct some.")
    runs = [RunFolder.of(dataset.name, STUDENT, arguments.p, arguments.c, fold) for fold in folds]
    trainings = [run.train_command(device=device.type) for run in runs]
    say_next(f"{planned.command('review')} -tr {arguments.tr}", *trainings)


def show_written(what: str, written: "Written") -> None:
    """Print what was labeled for a fold; ``what`` begins each line."""
    for warning in written.warnings:
        print(f"warning: {what}: {warning}", file=sys.stderr)
    print(
        f"{what}: {len(written.predicted)} labeled, {len(written.current)} were there, "
        f"{len(written.held_out)} left out, being of patients that the fold validates: {written.folder}"
    )
    if written.corrected:
        print(f"{what}: corrected by hand and kept: {', '.join(written.corrected)}")
    if written.confident:
        shares = ", ".join(
            f"{name} {'-' if math.isnan(share) else f'{share:.0%}'}" for name, share in written.confident.items()
        )
        print(f"{what}: confident voxels of each predicted class: {shares}", flush=True)
