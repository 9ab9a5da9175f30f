"""nnUNetv2_crossmatch: what nnU-Net has no command of its own for."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="nnUNetv2_crossmatch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_preprocess(commands)
    _add_convert(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, KeyError, OSError, RuntimeError, AssertionError) as e:  # ours and nnU-Net's own complaints
        print(f"nnUNetv2_crossmatch: {e}", file=sys.stderr)
        sys.exit(2)


def _add_preprocess(commands) -> None:
    command = commands.add_parser(
        "preprocess",
        help="preprocess the unlabelled scans with the plans of the labelled ones",
        epilog="example: nnUNetv2_crossmatch preprocess -d 4 -c 2d 3d_fullres",
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("-c", required=True, nargs="+", metavar="CONFIG", help="configurations, e.g. 2d 3d_fullres")
    command.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    command.add_argument("-np", type=int, default=8, metavar="N", help="worker processes (default: %(default)s)")
    command.set_defaults(run=_preprocess)


def _preprocess(arguments: argparse.Namespace) -> None:
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_crossmatch.preprocessing.listing import labeled_cases
    from nnunetv2_crossmatch.preprocessing.splits import ensure_splits, known_patients
    from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled

    name = maybe_convert_to_dataset_name(arguments.d)
    raw, preprocessed = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
    plans = PlansManager(str(preprocessed / f"{arguments.p}.json"))
    dataset_json = load_json(str(raw / "dataset.json"))
    ensure_splits(preprocessed, labeled_cases(raw, dataset_json), known_patients(raw, preprocessed))
    for configuration in arguments.c:
        cases = preprocess_unlabeled(raw, preprocessed, plans, configuration, arguments.np)
        print(f"{name} {configuration}: {len(cases)} unlabelled cases are ready")


def _add_convert(commands) -> None:
    command = commands.add_parser(
        "convert",
        help="make a semi-supervised dataset of a benchmark or of a folder of labelled scans",
        epilog="example: nnUNetv2_crossmatch convert acdc Downloads/ACDC -d 27 --labeled 3",
    )
    command.add_argument("kind", choices=["la", "acdc", "nifti"], help="how the source is laid out")
    command.add_argument("source", type=Path, metavar="SRC", help="folder of the download")
    command.add_argument("-d", type=int, required=True, metavar="ID", help="dataset id of the new dataset")
    command.add_argument(
        "--labeled",
        type=int,
        required=True,
        metavar="N",
        help="labelled scans (acdc: patients) that keep their labels; the rest are hidden",
    )
    command.add_argument("--test", type=int, default=0, metavar="N", help="nifti: hold out N scans for testing")
    command.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.dataset_conversion import acdc, la, nifti
    from nnunetv2_crossmatch.dataset_conversion.common import write_dataset

    if arguments.kind == "nifti":
        conversion = nifti.convert(arguments.source, arguments.labeled, arguments.test)
    else:
        conversion = {"la": la, "acdc": acdc}[arguments.kind].convert(arguments.source, arguments.labeled)
    folder = write_dataset(conversion, arguments.d)
    print(
        f"{folder}: {len(conversion.labeled)} labelled, {len(conversion.unlabeled)} unlabelled, "
        f"{len(conversion.validation)} validation, {len(conversion.test)} test scans"
    )
