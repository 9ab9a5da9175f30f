"""nnUNetv2_crossmatch estimate."""

import argparse
import shutil
import sys
from typing import TYPE_CHECKING

from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    as_device,
    as_fold,
    as_trainer,
    say_next,
)
from nnunetv2_crossmatch.utilities.tables import aligned

if TYPE_CHECKING:
    import torch

    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.trainers.estimate import Cost

STOCK = "nnUNetTrainer"


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "estimate",
        "what a training will cost on this machine: hours, memory and disk, from a few real steps (two minutes)",
        "-d 4 -c 3d_fullres",
    )
    add_arguments(command, "-d", "-c", "-p", "-device")
    command.add_argument(
        "-f", type=as_fold, default=0, metavar="FOLD", help="all validates all cases (default: any one of the folds)"
    )
    command.add_argument(
        "-tr",
        nargs="+",
        type=as_trainer,
        default=["nnUNetTrainerCrossMatch"],
        metavar="TRAINER",
        help=f"trainers, beside {STOCK} (default: %(default)s)",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
    from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned

    dataset = Dataset.find_preprocessed(arguments.d)
    planned = Planned(dataset, dataset.plans(arguments.p), arguments.c)
    names = list(dict.fromkeys((STOCK, *arguments.tr)))
    device = as_device(arguments.device)
    print(*as_text(measure_all(planned, names, device), device, arguments.f), sep="\n")
    if not say_unlabeled(planned):
        run = RunFolder.of(dataset.name, arguments.tr[0], arguments.p, arguments.c, arguments.f)
        say_next(run.train_command(device=device.type))


def measure_all(planned: "Planned", trainers: list[str], device: "torch.device") -> "list[Cost]":
    """One after the other; says on stderr which."""
    from nnunetv2_crossmatch.trainers.estimate import measure

    costs = []
    for trainer in trainers:
        print(f"a few steps of {trainer} ...", file=sys.stderr, flush=True)
        costs.append(measure(planned, trainer, device))
    return costs


def as_text(costs: "list[Cost]", device: "torch.device", fold: int | str = 0) -> list[str]:
    """A table; the first trainer is what the others are compared with."""
    stock = costs[0].hours(fold)[0]
    of_fold = "hours of fold all" if fold == "all" else "hours per fold"
    rows = [("trainer", "s/epoch", "epochs", of_fold, f"of {costs[0].trainer}'s", "peak memory")]
    for cost in costs:
        memory = "not known" if cost.peak_memory is None else _size(cost.peak_memory)
        hours = cost.hours(fold)
        shares = hours[0] / stock, hours[1] / stock
        row = (_range(cost.epoch_seconds), str(cost.epochs), _range(hours), _range(shares), memory)
        rows.append((cost.trainer, *row))
    lines = aligned(rows)
    if any(cost.epoch_seconds[0] != cost.epoch_seconds[1] for cost in costs):
        lines.append("from ... to: self-training never begins, or begins with the first epochs")
    whose = "torch's tensors on the GPU" if device.type == "cuda" else "the process, data loaders apart"
    return [*lines, f"Hours: training and, roughly, validation. Peak memory: of {whose}."]


def _range(values: tuple[float, float]) -> str:
    low, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in sorted(values))
    return low if low == high else f"{low} to {high}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def say_unlabeled(planned: "Planned") -> bool:
    """What preprocessing the unlabeled scans will take, or has taken; returns whether it is what comes next."""
    from nnunetv2_crossmatch.preprocessing.listing import unlabeled_ids
    from nnunetv2_crossmatch.preprocessing.manifest import Manifest
    from nnunetv2_crossmatch.trainers.estimate import disk_for_unlabeled

    known = Manifest.read(planned.unlabeled_folder).cases
    raw = planned.dataset.raw
    missing = set() if raw is None else unlabeled_ids(raw, planned.dataset.json) - known.keys()
    if known:
        print(f"{len(known)} unlabeled scans are preprocessed.")
    if missing:
        free = shutil.disk_usage(planned.dataset.preprocessed).free
        print(
            f"{len(missing)} unlabeled scans are not preprocessed yet"
            f"{'' if known else ', so labeled ones stood for them'}: about "
            f"{_size(disk_for_unlabeled(planned, len(missing)))} of disk, {_size(free)} are free."
        )
        say_next(planned.command("preprocess"))
    return bool(missing)
