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
    from nnunetv2_crossmatch.preprocessing.content import LABELED, read_content
    from nnunetv2_crossmatch.self_training.pool import write_pool_page

    dataset = find_dataset(arguments.d)
    if report(dataset, arguments.np, accept=arguments.accept):
        content = read_content(dataset.preprocessed)
        if dataset.raw is not None and content[LABELED]:
            page = write_pool_page(dataset, content, arguments.np)
            print(f"The unlabeled scans that are least like the labeled ones, and how to leave them out: {page}")
        say_next_of(dataset)
