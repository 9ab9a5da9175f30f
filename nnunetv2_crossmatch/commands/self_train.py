"""nnUNetv2_crossmatch self-train."""

import argparse

from nnunetv2_crossmatch.commands.pseudo_label import show_written
from nnunetv2_crossmatch.commands.shared import (
    Commands,
    add_arguments,
    add_command,
    add_teacher,
    as_device,
    find_dataset,
    predict_command,
    say_next,
)
from nnunetv2_crossmatch.commands.sweep import require_jobs


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "self-train",
        "rounds of self-training: the trained models label the unlabeled scans, nnU-Net trains on the labels, and its "
        "models label again; after an interruption the same command goes on",
        "-d 4 -c 3d_fullres -f 0 1 2 3 4 --rounds 2",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-chk", "-np", "--threshold", "-device")
    add_teacher(command, "whose models label first")
    command.add_argument(
        "--rounds", type=int, default=2, metavar="N", help="trainings of each fold (default: %(default)s)"
    )
    command.add_argument(
        "--student",
        default="nnUNetTrainerPseudoLabel",
        metavar="TRAINER",
        help="what a round trains, e.g. nnUNetTrainerPseudoLabel_250epochs (default: %(default)s)",
    )
    command.add_argument(
        "--drop",
        type=float,
        default=0.038,
        metavar="SHARE",
        help="of the scans, those whose labels change most from round to round, which the next round leaves out "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--from-teacher",
        action="store_true",
        help="begin each training with the weights of the model that labeled, as nnU-Net's -pretrained_weights, and "
        "not from nothing",
    )
    command.set_defaults(run=run, np=3)


def run(arguments: argparse.Namespace) -> None:
    require_jobs("self-train")
    from nnunetv2_crossmatch.preprocessing.dataset import Planned
    from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits
    from nnunetv2_crossmatch.preprocessing.splits import every_fold
    from nnunetv2_crossmatch.self_training.names import is_student
    from nnunetv2_crossmatch.sweep.rounds_table import as_text
    from nnunetv2_crossmatch.sweep.self_train import TABLE, Constants, SelfTraining

    if not is_student(arguments.student):
        raise ValueError(f"--student {arguments.student}: nnUNetTrainerPseudoLabel, or with a length: ..._250epochs.")
    if arguments.rounds < 1:
        raise ValueError(f"--rounds {arguments.rounds}: at least 1.")
    if not 0 <= arguments.drop < 1:
        raise ValueError(f"--drop {arguments.drop}: a share of the scans, from 0 to less than 1.")
    dataset = find_dataset(arguments.d)
    prepare_splits(dataset)
    folds = list(dict.fromkeys(arguments.f or every_fold(dataset.preprocessed)))
    self_training = SelfTraining(
        Planned(dataset, dataset.plans(arguments.p), arguments.c),
        arguments.tr,
        arguments.student,
        folds,
        Constants(arguments.threshold, arguments.drop, arguments.from_teacher, arguments.chk),
    )
    device = as_device(arguments.device).type
    for number, fold, written in self_training.run(arguments.rounds, device, arguments.np):
        show_written(f"round {number}, fold {fold}", written)
    rows = [row for row in self_training.rows() if row["fold"] in folds and row["round"] <= arguments.rounds]
    print(*as_text(rows), sep="\n")
    print(f"Each fold and, beside it, each scan: {self_training.folder / TABLE}")
    last = self_training.of(arguments.rounds, folds[0]).trainer
    what = f"-d {dataset.name} -c {arguments.c} -p {arguments.p}"
    of_folds = f"-f {' '.join(map(str, folds))}"
    compare = f"nnUNetv2_crossmatch compare {what} -tr {arguments.tr} {last} {of_folds}"
    predict = predict_command(dataset, arguments.c, arguments.p, last, folds, device)
    say_next(*([] if "all" in folds else [compare]), predict)
