"""nnUNetv2_crossmatch preprocess."""

import argparse

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    find_dataset,
    report,
    say_next,
    train_command,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "preprocess",
        "preprocess the unlabeled scans with the plans of the labeled ones",
        "-d 4 -c 2d 3d_fullres",
    )
    add_arguments(command, "-d", "-p", "-np")
    command.add_argument("-c", required=True, nargs="+", metavar="CONFIG", help="configurations, e.g. 2d 3d_fullres")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.api import preprocess

    dataset = find_dataset(arguments.d)
    for configuration, cases in preprocess(arguments.d, arguments.c, arguments.p, arguments.np).items():
        print(f"{dataset.name} {configuration}: {len(cases)} unlabeled cases are ready")
    report(dataset, arguments.np)
    say_next(train_command(dataset, arguments.c[-1], arguments.p))
