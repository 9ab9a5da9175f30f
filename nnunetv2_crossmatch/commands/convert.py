"""nnUNetv2_crossmatch convert."""

import argparse
from importlib import import_module
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_command, find_dataset, report
from nnunetv2_crossmatch.dataset_conversion import CONVERTERS


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "convert",
        "make a semi-supervised dataset of a benchmark or of a folder of labeled scans",
        "acdc Downloads/ACDC -d 27 --labeled 3",
    )
    command.add_argument("kind", choices=list(CONVERTERS), help="the benchmark")
    command.add_argument("source", type=Path, metavar="SRC", help="folder of the download")
    command.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id of the new dataset")
    command.add_argument(
        "--labeled",
        type=int,
        required=True,
        metavar="N",
        help="labeled scans (acdc: patients) that keep their labels; the rest are hidden",
    )
    for kind, converter in CONVERTERS.items():
        for name, option in converter.options.items():
            command.add_argument(f"--{name}", **{**option, "help": f"{kind}: {option['help']}"})
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_crossmatch.dataset_conversion.common import write_dataset

    own = CONVERTERS[arguments.kind].options
    given = {n: v for of in CONVERTERS.values() for n in of.options if (v := getattr(arguments, n))}
    if foreign := [f"--{name}" for name in given if name not in own]:
        raise ValueError(f"{' and '.join(foreign)}: {arguments.kind} has no such option.")
    converter = import_module(f"nnunetv2_crossmatch.dataset_conversion.{arguments.kind}")
    conversion = converter.convert(arguments.source, arguments.labeled, **given)
    folder = write_dataset(conversion, arguments.d)
    report(find_dataset(folder.name), default_num_processes)
