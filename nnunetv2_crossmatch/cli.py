"""What nnU-Net has no command of its own for."""

import argparse
import os
import sys
import warnings
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from nnunetv2_crossmatch.commands import (
    annotated,
    check,
    compare,
    convert,
    doctor,
    estimate,
    evaluate,
    export,
    hide_labels,
    preprocess,
    pseudo_label,
    review,
    run,
    self_train,
    suggest,
    sweep,
    trainers,
)
from nnunetv2_crossmatch.commands.completion import from_disk
from nnunetv2_crossmatch.utilities.near import did_you_mean, nearest

COMMANDS = (
    preprocess,
    check,
    convert,
    hide_labels,
    estimate,
    run,
    pseudo_label,
    review,
    self_train,
    suggest,
    annotated,
    sweep,
    compare,
    evaluate,
    export,
    trainers,
    doctor,
)
COMPLETION = "print what makes a shell complete these commands"
COMPLAINTS = (ValueError, OSError, RuntimeError, AssertionError)  # ours and nnU-Net's own; they say what is wrong


def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    if sys.stderr.isatty():
        print("loading nnU-Net ...", file=sys.stderr, flush=True)  # ten seconds and more; pipes and logs do without
    warnings.simplefilter("ignore", FutureWarning)  # of libraries among themselves
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as e:
        if isinstance(e, BrokenPipeError) and _is_unread():
            sys.exit(141)  # as the shell says of what SIGPIPE ends
        if "debug" in arguments:
            raise
        message = explain(e).strip()
        print("nnUNetv2_crossmatch:", message, sep="\n" if "\n" in message else " ", file=sys.stderr)
        sys.exit(2)


def _is_unread() -> bool:
    """Whether who reads the output, such as head, has had enough; Python is kept from writing the rest at its end."""
    try:
        print(flush=True)  # or else another pipe broke
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="nnUNetv2_crossmatch",
        description=__doc__,
        epilog="nnUNetv2_crossmatch COMMAND -h says more of each.\nexample: nnUNetv2_crossmatch check -d 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('nnunetv2_crossmatch')}")
    shtab = _shtab()
    if shtab is None:
        parser.add_argument("--print-completion", action=_NoCompletion, metavar="SHELL", help=COMPLETION)
    else:
        shtab.add_argument_to(parser, help=COMPLETION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    if shtab is not None:
        for command in commands.choices.values():
            for action in command._actions:
                if action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
                elif action.dest in ("d", "c", "p", "f", "tr") and action.type is not int:  # the id of a new dataset
                    action.complete = from_disk(action.dest)  # type: ignore[attr-defined]
    for one in (parser, *commands.choices.values()):
        # before the command or after it, so the latter's default must not overwrite the former
        one.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """Asks what a misspelt command, or another choice, was to be."""

    def _get_option_tuples(self, option_string: str) -> list:
        """None by the beginning of its name: -n would be taken for -np."""
        return []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as e:
            e.message = (e.message or "") + "." + did_you_mean(nearest(str(value), map(str, action.choices or ())))
            raise


def _shtab() -> ModuleType | None:
    """The package that writes completions, if it is installed."""
    try:
        import shtab
    except ModuleNotFoundError:
        return None
    return shtab


class _NoCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error("--print-completion needs shtab: pip install shtab")


def explain(error: Exception) -> str:
    """What went wrong, for readers who do not read tracebacks; a single line unless the error is one of COMPLAINTS."""
    if isinstance(error, COMPLAINTS) and str(error):
        return str(error)
    what = f"there is no {error}" if isinstance(error, KeyError) else " ".join(str(error).split()) or "it says no more"
    return f"{type(error).__name__}: {what}. Run again with --debug for the traceback."
