"""nnUNetv2_crossmatch hide-labels."""

import argparse

from nnunetv2_crossmatch.commands.shared import Commands, add_command, find_dataset, report, say_next, say_next_of


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "hide-labels",
        "make a semi-supervised dataset of a labeled one: what if only some of the labels were there?",
        "-d 4 -t 104 --labeled 10%",
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="id or name of the labeled dataset")
    command.add_argument("-t", type=int, required=True, metavar="ID", help="dataset id of the new dataset")
    how_many = command.add_mutually_exclusive_group(required=True)
    how_many.add_argument(
        "--labeled",
        metavar="N",
        help="how many keep their labels, or a share such as 10%%; patients where they are known, else cases",
    )
    how_many.add_argument(
        "--curve",
        nargs="+",
        metavar="N",
        help="several such numbers, rising: datasets ID, ID + 1, ..., each with the labels of those before",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: %(default)s)")
    command.add_argument(
        "--group-by",
        metavar="REGEX",
        help="cases of one patient: those whose ids have the same match, or the same first group, e.g. patient\\d+ "
        "(default: patients.json)",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_crossmatch.dataset_conversion.hide_labels import hide_labels

    source = find_dataset(arguments.d).require_raw()
    numbers = arguments.curve or [arguments.labeled]
    for folder in hide_labels(source, arguments.t, numbers, arguments.seed, arguments.group_by):
        dataset = find_dataset(folder.name)
        report(dataset, default_num_processes)
    if not arguments.curve:
        say_next_of(dataset)
        return
    made = " ".join(str(arguments.t + i) for i in range(len(numbers)))
    what = "-c CONFIG -tr nnUNetTrainer nnUNetTrainerCrossMatch"
    print(
        "The datasets have other folds and share the test scans (imagesTs, labelsTs): only there are their scores "
        "those of the same cases."
    )
    say_next(
        f"nnUNetv2_plan_and_preprocess -d {made}",
        f"nnUNetv2_crossmatch sweep -d {arguments.t} {what}      # and each of the others",
        f"nnUNetv2_crossmatch compare -d {arguments.t} {what} --test      # and each of the others",
    )
