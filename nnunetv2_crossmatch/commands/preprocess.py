"""nnUNetv2_crossmatch preprocess."""

import argparse

from nnunetv2_crossmatch.commands.shared import add_arguments, add_command, dataset, report


def add(commands) -> None:
    command = add_command(
        commands,
        "preprocess",
        "preprocess the unlabeled scans with the plans of the labeled ones",
        "-d 4 -c 2d 3d_fullres",
    )
    add_arguments(command, "-d", "-p", "-np")
    command.add_argument("-c", required=True, nargs="+", metavar="CONFIG", help="configurations, e.g. 2d 3d_fullres")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.preprocessing.listing import labeled_scans
    from nnunetv2_crossmatch.preprocessing.splits import ensure_splits, known_patients
    from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled, read_plans

    raw, preprocessed, dataset_json = dataset(arguments.d)
    plans = read_plans(preprocessed, arguments.p)
    ensure_splits(preprocessed, list(labeled_scans(raw, dataset_json)), known_patients(raw, preprocessed))
    for configuration in arguments.c:
        cases = preprocess_unlabeled(raw, preprocessed, plans, configuration, arguments.np)
        print(f"{raw.name} {configuration}: {len(cases)} unlabeled cases are ready")
    report(raw, preprocessed, dataset_json, arguments.np)
