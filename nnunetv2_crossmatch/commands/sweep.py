"""nnUNetv2_crossmatch sweep."""

import argparse
import os
import time
from importlib.util import find_spec

from nnunetv2_crossmatch.commands.shared import (
    ARGUMENTS,
    Commands,
    add_arguments,
    add_command,
    as_device,
    as_trainer,
    find_dataset,
    predict_command,
    say_next,
)


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "sweep",
        "train several trainers on several folds, on this machine's GPUs or on SLURM, and compare them",
        "-d 4 -c 3d_fullres -tr nnUNetTrainer nnUNetTrainerCrossMatch --cluster slurm --hours 24",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "--seeds", "-device")
    command.add_argument("-tr", required=True, nargs="+", type=as_trainer, metavar="TRAINER", help="trainers")
    command.add_argument(
        "--cluster", choices=["local", "slurm"], default="local", help="where to train (default: %(default)s)"
    )
    command.add_argument(
        "--gpus-per-job", type=int, default=1, metavar="N", help="of each training (default: %(default)s)"
    )
    command.add_argument("--partition", metavar="NAME", help="slurm: partition (default: the cluster's)")
    command.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="local: how long the trainings may take; the same line goes on later (default: no limit). slurm: time "
        "limit of a job, after which it is queued again and goes on (default: 24). Anything else that a cluster "
        "wants: sbatch's own variables, e.g. SBATCH_ACCOUNT",
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
    from nnunetv2_crossmatch.comparison.page import compare_to_page
    from nnunetv2_crossmatch.nnunet.run_folder import LATEST
    from nnunetv2_crossmatch.preprocessing.dataset import Dataset
    from nnunetv2_crossmatch.sweep.clusters import Cluster, Local, Slurm
    from nnunetv2_crossmatch.sweep.matrix import make_runs, train_all

    slurm = arguments.cluster == "slurm"
    # where jobs are sent from there may be no GPU
    device = as_device("cuda" if slurm and arguments.device == "auto" else arguments.device)
    if arguments.gpus_per_job < 1 or (device.type != "cuda" and arguments.gpus_per_job > 1):
        raise ValueError(f"--gpus-per-job {arguments.gpus_per_job}: at least 1, and no more with -device {device}.")
    if arguments.hours is not None and not arguments.hours > 0:
        raise ValueError(f"--hours {arguments.hours}: more than 0.")
    if not slurm and arguments.partition:
        raise ValueError("--partition: local has no such option.")
    if not slurm and arguments.hours and arguments.gpus_per_job > 1:
        raise ValueError("--hours: a local training on several GPUs cannot be stopped between two epochs.")
    until = time.time() + 3600 * arguments.hours if arguments.hours else None
    runs = make_runs(arguments.d, arguments.c, arguments.p, arguments.tr, arguments.f, arguments.seeds)
    folds = list(dict.fromkeys(run.fold for run in runs))
    where = runs, device.type, arguments.gpus_per_job
    cluster: Cluster = (
        Slurm(*where, arguments.partition, arguments.hours or 24) if slurm else Local(*where, until=until)
    )
    trainers = list(dict.fromkeys(arguments.tr))
    compared = len(trainers) > 1
    # only a comparison needs the raw scans: better missed now than after the trainings
    dataset = find_dataset(arguments.d) if compared else Dataset.find_preprocessed(arguments.d)
    if compared and "all" in folds and not (dataset.require_raw() / "labelsTs").is_dir():
        print("No comparison will follow: fold all holds no case out, and there is no labelsTs.")
        compared = False
    train_all(runs, cluster)
    if left := [run for run in runs if not run.is_done]:
        print(f"The time is over. {len(left)} of {len(runs)} are not done; the same line goes on with them.")
        if stopped := [run for run in left if run.checkpoint(LATEST).exists()]:
            print(f"A model so far predicts, too: {stopped[0].predict_command(LATEST, device.type)}")
        return
    if compared:
        what = dataset, arguments.p, arguments.c, trainers, folds, "all" in folds
        print(compare_to_page(*what, device, ARGUMENTS["-np"]["default"], arguments.seeds))
    trainer = "TRAINER" if len(trainers) > 1 else trainers[0]
    say_next(predict_command(dataset, arguments.c, arguments.p, trainer, folds, device.type))
