"""nnUNetv2_crossmatch check."""

import argparse

from nnunetv2_crossmatch.commands.shared import dataset, report


def add(commands) -> None:
    command = commands.add_parser(
        "check",
        help="look for unreadable scans, the same scan or patient in training and test, scans unlike the labelled ones",
        epilog="example: nnUNetv2_crossmatch check -d 4",
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("-np", type=int, default=8, metavar="N", help="worker processes (default: %(default)s)")
    command.add_argument(
        "--accept", action="store_true", help="train in spite of the leaks that are found now; they become warnings"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    report(*dataset(arguments.d), arguments.np, accept=arguments.accept)
