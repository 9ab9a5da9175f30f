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
    dataset = find_dataset(arguments.d)
    if report(dataset, arguments.np, accept=arguments.accept):
        say_next_of(dataset)
