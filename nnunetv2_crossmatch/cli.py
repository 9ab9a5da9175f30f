"""nnUNetv2_crossmatch: what nnU-Net has no command of its own for."""

import argparse
import sys

from nnunetv2_crossmatch.commands import check, compare, convert, evaluate, hide_labels, preprocess, pseudo_label, sweep

COMMANDS = (preprocess, check, convert, hide_labels, evaluate, pseudo_label, sweep, compare)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="nnUNetv2_crossmatch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, KeyError, OSError, RuntimeError, AssertionError) as e:  # ours and nnU-Net's own complaints
        print(f"nnUNetv2_crossmatch: {e}", file=sys.stderr)
        sys.exit(2)
