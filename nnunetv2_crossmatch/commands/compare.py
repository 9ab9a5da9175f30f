"""nnUNetv2_crossmatch compare."""

import argparse
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    as_device,
    as_trainer,
    find_dataset,
    predict_command,
    say_next,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "compare",
        "did the unlabeled scans help? trained models on the same cases, with a page to show",
        "-d 4 -c 3d_fullres -tr nnUNetTrainer nnUNetTrainerCrossMatch",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "--seeds", "-np", "-device")
    command.add_argument(
        "-tr",
        required=True,
        nargs="+",
        type=as_trainer,
        metavar="TRAINER",
        help="trainers; the others are compared with the first",
    )
    command.add_argument(
        "--test",
        action="store_true",
        help="on imagesTs and labelsTs, predicted by all folds, not on validation",
    )
    command.add_argument(
        "-o", type=Path, metavar="FILE.html", help="the page (default: in nnUNet_results); FILE.json comes beside it"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.comparison.page import compare_to_page
    from nnunetv2_crossmatch.preprocessing.splits import every_fold

    device = as_device(arguments.device if arguments.test else "cpu")  # else nothing is predicted
    dataset = find_dataset(arguments.d)
    what = dataset, arguments.p, arguments.c, arguments.tr, arguments.f, arguments.test
    print(compare_to_page(*what, device, arguments.np, arguments.seeds, arguments.o))
    folds = arguments.f or every_fold(dataset.preprocessed)
    say_next(predict_command(dataset, arguments.c, arguments.p, "TRAINER", folds, device.type))
