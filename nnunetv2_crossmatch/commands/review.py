"""nnUNetv2_crossmatch review."""

import argparse

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    add_teacher,
    find_dataset,
    say_next,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "review",
        "a page to look at the pseudo-labels and mark them, the most doubtful first",
        "-d 4 -c 3d_fullres -f 0",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-np")
    add_teacher(command, "whose models labeled")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.self_training.review import labeled_folds, write_review_page

    dataset = find_dataset(arguments.d)
    planned = Planned(dataset, dataset.plans(arguments.p), arguments.c)
    folds = arguments.f or labeled_folds(planned, arguments.tr)
    if not folds:
        raise ValueError(f"There are no pseudo-labels. Run: {planned.command('pseudo-label')} -tr {arguments.tr}")
    commands = []
    for fold in folds:
        page, number, command = write_review_page(planned, arguments.tr, fold, arguments.np)
        print(f"fold {fold}: {number} pseudo-labels, open in a browser: {page}")
        commands.append(command)
    say_next(*commands)
