"""nnUNetv2_crossmatch check."""

import argparse

from nnunetv2_crossmatch.commands.shared import Commands, add_arguments, add_command, find_dataset, report, say_next_of


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "check",
        "look for unreadable scans, the same scan or patient in training and test, scans unlike the labeled ones",
        "-d 4",
    )
    add_arguments(command, "-d", "-np")
    command.add_argument(
        "--accept", action="store_true", help="train in spite of the leaks that are found now; they become warnings"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.preprocessing.content import read_content
    from nnunetv2_crossmatch.self_training.pool import write_pool_page

    dataset = find_dataset(arguments.d)
    if report(dataset, arguments.np, accept=arguments.accept):
        if dataset.raw is not None:
            page = write_pool_page(dataset, read_content(dataset.preprocessed), arguments.np)
            print(f"The unlabeled scans that are least like the labeled ones, and how to leave them out: {page}")
        say_next_of(dataset)
