"""nnUNetv2_crossmatch sweep."""

import argparse
import os
from importlib.util import find_spec

from nnunetv2_crossmatch.commands.shared import (
    ARGUMENTS,
    Commands,
    add_arguments,
    add_command,
    as_fold,
    as_trainer,
    find_dataset,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "sweep",
        "train several trainers on several folds, on this machine's GPUs or on SLURM, and compare them",
        "-d 4 -c 3d_fullres -tr nnUNetTrainer nnUNetTrainerCrossMatch -f 0 1 2 3 4 --cluster slurm --hours 24",
    )
    add_arguments(command, "-d", "-c", "-p")
    command.add_argument("-tr", required=True, nargs="+", type=as_trainer, metavar="TRAINER", help="trainers")
    command.add_argument("-f", required=True, nargs="+", type=as_fold, metavar="FOLD", help="numbers or all")
    command.add_argument("-device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    command.add_argument("--cluster", required=True, choices=["local", "slurm"], help="where to train")
    command.add_argument(
        "--gpus-per-job", type=int, default=1, metavar="N", help="of each training (default: %(default)s)"
    )
    command.add_argument("--partition", help="slurm: partition (default: the cluster's)")
    command.add_argument(
        "--hours",
        type=float,
        help="slurm: time limit of a job, after which it is queued again and goes on (default: 24). Anything else that "
        "a cluster wants: sbatch's own variables, e.g. SBATCH_ACCOUNT",
    )
    command.set_defaults(run=run)


def require_jobs(command: str) -> None:
    """Raises ValueError: jobs cannot be started here."""
    if os.name == "nt":
        raise ValueError(f"{command} needs Linux or macOS; on Windows use WSL.")
    if find_spec("submitit") is None:
        raise ValueError(f"{command} needs submitit: pip install submitit")


def run(arguments: argparse.Namespace) -> None:
    require_jobs("sweep")
    import torch

    from nnunetv2_crossmatch.comparison.page import compare_to_page
    from nnunetv2_crossmatch.sweep.clusters import Cluster, Local, Slurm
    from nnunetv2_crossmatch.sweep.matrix import make_runs, train_all

    if arguments.gpus_per_job < 1 or (arguments.device == "cpu" and arguments.gpus_per_job > 1):
        raise ValueError(f"--gpus-per-job {arguments.gpus_per_job}: at least 1, and no more with -device cpu.")
    if arguments.hours is not None and not arguments.hours > 0:
        raise ValueError(f"--hours {arguments.hours}: more than 0.")
    if arguments.cluster == "local" and (arguments.partition or arguments.hours):
        raise ValueError("--partition and --hours: local has no such options.")
    runs = make_runs(arguments.d, arguments.c, arguments.p, arguments.tr, arguments.f)
    where = runs, arguments.device, arguments.gpus_per_job
    cluster: Cluster = (
        Local(*where) if arguments.cluster == "local" else Slurm(*where, arguments.partition, arguments.hours or 24)
    )
    trainers = list(dict.fromkeys(arguments.tr))
    compared = len(trainers) > 1
    if compared and "all" in arguments.f and not (find_dataset(arguments.d).require_raw() / "labelsTs").is_dir():
        print("No comparison will follow: fold all holds no case out, and there is no labelsTs.")
        compared = False
    train_all(runs, cluster)
    if compared:
        folds = list(dict.fromkeys(arguments.f))
        what = find_dataset(arguments.d), arguments.p, arguments.c, trainers, folds, "all" in folds
        print(compare_to_page(*what, torch.device(arguments.device), ARGUMENTS["-np"]["default"]))
