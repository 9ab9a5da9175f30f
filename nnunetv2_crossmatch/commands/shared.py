"""What several commands do."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nnunetv2_crossmatch.trainers import METHODS
from nnunetv2_crossmatch.trainers.names import meant_trainer
from nnunetv2_crossmatch.utilities.devices import as_device as as_device  # every command's
from nnunetv2_crossmatch.utilities.devices import device_option
from nnunetv2_crossmatch.utilities.near import did_you_mean

if TYPE_CHECKING:
    from nnunetv2_crossmatch.preprocessing.dataset import Dataset


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def as_fold(value: str) -> int | str:
    """A fold on the command line."""
    if value == "all" or value.isdecimal():
        return value if value == "all" else int(value)
    raise argparse.ArgumentTypeError(f"{value!r} is neither a number nor all")


def as_trainer(value: str) -> str:
    """A trainer on the command line; one whose models are there may itself be gone."""
    meant = meant_trainer(value, METHODS)
    trained = Path(os.environ.get("nnUNet_results", os.devnull)).glob(f"*/{escape(value)}__*")
    if meant and not any(trained):
        raise argparse.ArgumentTypeError(f"no trainer is called {value}.{did_you_mean(meant)}")
    return value


def as_count(value: str) -> int:
    """At least one."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of at least 1")
    return int(value)


ARGUMENTS: dict[str, dict[str, Any]] = {  # named and meant as in nnU-Net's commands
    "-d": {"required": True, "metavar": "DATASET", "help": "dataset id or name"},
    "-c": {"required": True, "metavar": "CONFIG", "help": "configuration, e.g. 3d_fullres"},
    "-tr": {
        "required": True,
        "type": as_trainer,
        "metavar": "TRAINER",
        "help": "trainer, e.g. nnUNetTrainerCrossMatch",
    },
    "-p": {"default": "nnUNetPlans", "metavar": "PLANS", "help": "plans identifier (default: %(default)s)"},
    "-f": {"nargs": "+", "type": as_fold, "metavar": "FOLD", "help": "numbers or all (default: every fold)"},
    "-chk": {"default": "checkpoint_final.pth", "metavar": "FILE", "help": "checkpoint (default: %(default)s)"},
    "-device": {
        "choices": ["auto", "cuda", "cpu", "mps"],
        "default": "auto",
        "help": "auto: CUDA, or else Apple's MPS, or else the CPU (default: %(default)s)",
    },
    "--threshold": {
        "type": float,
        "default": 0.9,
        "metavar": "P",
        "help": "voxels that are less probable are ignored; 0 ignores none (default: %(default)s)",
    },
    "--seeds": {
        "type": as_count,
        "default": 1,
        "metavar": "N",
        "help": "trainings of each trainer and fold; they differ in what is drawn at random (default: %(default)s)",
    },
    "-np": {"type": int, "default": 8, "metavar": "N", "help": "worker processes (default: %(default)s)"},
}


def add_command(commands: Commands, name: str, help: str, example: str = "") -> argparse.ArgumentParser:
    """A sub-command; its help ends with the example, which names the arguments only."""
    return commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}",
        epilog=f"example: nnUNetv2_crossmatch {name} {example}".rstrip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,  # a wrapped example cannot be pasted
    )


def add_arguments(command: argparse.ArgumentParser, *flags: str) -> None:
    """Some of ARGUMENTS."""
    for flag in flags:
        command.add_argument(flag, **ARGUMENTS[flag])


def add_teacher(command: argparse.ArgumentParser, whose: str) -> None:
    """-tr of a command that asks trained models; stock nnU-Net's by default."""
    of_teacher = {"required": False, "default": "nnUNetTrainer", "help": f"{whose} (default: %(default)s)"}
    command.add_argument("-tr", **{**ARGUMENTS["-tr"], **of_teacher})


def report(dataset: Dataset, num_processes: int, accept: bool = False) -> bool:
    """Print what the check finds and whether a training can begin; an error ends the program unless it is accepted.

    Returns whether there are unlabeled scans; where there are none, it says so last.
    """
    from nnunetv2_crossmatch.preprocessing.check import accept_leaks, check_dataset
    from nnunetv2_crossmatch.preprocessing.content import UNLABELED

    findings = check_dataset(dataset, num_processes)
    if accept:
        accept_leaks(dataset.preprocessed, findings.leaks, findings.stale)
        findings = check_dataset(dataset, num_processes)
    for warning in findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{dataset.raw}: " + ", ".join(f"{len(cases)} scans in {part}" for part, cases in findings.content.items()))
    findings.raise_errors(dataset.name)
    there = bool(findings.content.get(UNLABELED))
    count = len(findings.warnings)
    warnings = f", {count} warning{'s' if count > 1 else ''} above" if count else ""
    print(f"{'Ready' if there else 'Nothing to mend'}{warnings}.")
    if not there:
        where = dataset.raw / "imagesUn" if dataset.raw else "imagesUn of the raw dataset"
        print(f"There is nothing unlabeled to learn from: put the unlabeled scans into {where}.")
        say_next(f"nnUNetv2_crossmatch check -d {dataset.name}")
    return there


def say_next(*commands: str) -> None:
    """What to type now: the last lines of every command."""
    print("Next:", *commands, sep=" " if len(commands) == 1 else "\n  ")


def say_next_of(dataset: Dataset) -> None:
    """The step of a checked dataset that comes next: plan, preprocess or train."""
    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.preprocessing.manifest import Manifest
    from nnunetv2_crossmatch.self_training.again import preprocessed_configurations

    if not (ready := preprocessed_configurations(dataset)):
        say_next(f"nnUNetv2_plan_and_preprocess -d {dataset.id}")
        return
    plans, configurations = next(iter(ready.items()))
    configuration = "3d_fullres" if "3d_fullres" in configurations else configurations[0]
    planned = Planned(dataset, dataset.plans(plans), configuration)
    manifest = Manifest.read(planned.unlabeled_folder)
    if manifest.complete and manifest.plans == planned.stamp:
        say_next(train_command(dataset, configuration, plans))
    else:
        say_next(planned.command("preprocess"))


def train_command(dataset: Dataset, configuration: str, plans: str) -> str:
    """nnU-Net's of the first fold, with the trainer to begin with."""
    from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
    from nnunetv2_crossmatch.trainers.catalog import BEGIN_WITH

    return RunFolder.of(dataset.name, BEGIN_WITH, plans, configuration, 0).train_command()


def predict_command(
    dataset: Dataset, configuration: str, plans: str, trainer: str, folds: Sequence[int | str], device: str
) -> str:
    """nnU-Net's, for scans in IN."""
    of_model = f"-d {dataset.name} -c {configuration} -p {plans} -tr {trainer} -f {' '.join(map(str, folds))}"
    return f"nnUNetv2_predict -i IN -o OUT {of_model}{device_option(device)}"


def find_dataset(name_or_id: str) -> Dataset:
    """Imports nnU-Net only now: a command line that is wrong should not wait for it."""
    from nnunetv2_crossmatch.preprocessing.dataset import Dataset

    return Dataset.find(name_or_id)
