"""nnUNetv2_crossmatch doctor."""

import argparse
import sys

from nnunetv2_crossmatch.commands.shared import add_command


def add(commands) -> None:
    command = add_command(
        commands, "doctor", "say which nnU-Net, torch and trainers are in effect, and how to fix what is wrong"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.doctor import examine

    healthy = True
    for finding in examine():
        print(f"problem  {finding.message}\n         {finding.fix}" if finding.fix else f"ok       {finding.message}")
        healthy &= finding.fix is None
    sys.exit(0 if healthy else 2)
