"""nnUNetv2_crossmatch convert."""

import argparse
from importlib import import_module
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_command, find_dataset, report, say_next_of
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
    for name, kinds in _options().items():
        option = CONVERTERS[kinds[0]].options[name]
        command.add_argument(f"--{name}", **{**option, "help": f"{', '.join(kinds)}: {option['help']}"})
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_crossmatch.dataset_conversion.common import require_free, write_dataset

    given = {name: value for name in _options() if (value := getattr(arguments, name))}
    if foreign := [f"--{name}" for name in given if arguments.kind not in _options()[name]]:
        raise ValueError(f"{' and '.join(foreign)}: {arguments.kind} has no such option.")
    require_free(arguments.d)  # before the download is looked through
    converter = import_module(f"nnunetv2_crossmatch.dataset_conversion.{arguments.kind}")
    conversion = converter.convert(arguments.source, arguments.labeled, **given)
    folder = write_dataset(conversion, arguments.d)
    dataset = find_dataset(folder.name)
    if report(dataset, default_num_processes):
        say_next_of(dataset)


def _options() -> dict[str, list[str]]:
    """Options that some of the converters have: name -> which."""
    names = dict.fromkeys(name for converter in CONVERTERS.values() for name in converter.options)
    return {name: [kind for kind, converter in CONVERTERS.items() if name in converter.options] for name in names}
