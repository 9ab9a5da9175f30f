"""nnUNetv2_crossmatch doctor."""

import argparse
import sys

from nnunetv2_crossmatch.commands.shared import Commands, add_command, say_next


def add(commands: Commands) -> None:
    command = add_command(
        commands, "doctor", "say which nnU-Net, torch and trainers are in effect, and how to fix what is wrong"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.doctor import examine

    problems = 0
    for finding in examine():
        if finding.fix is None:
            print(f"ok       {finding.message}")
        else:
            print(f"problem  {finding.message}\n         {finding.fix}")
            problems += 1
    if problems:
        sys.exit(2)
    say_next("nnUNetv2_crossmatch check -d DATASET")
