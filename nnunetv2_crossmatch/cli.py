"""nnUNetv2_crossmatch: what nnU-Net has no command of its own for."""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from nnunetv2_crossmatch.evaluation.published import benchmarks


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="nnUNetv2_crossmatch", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_preprocess(commands)
    _add_check(commands)
    _add_convert(commands)
    _add_hide_labels(commands)
    _add_evaluate(commands)
    _add_pseudo_label(commands)
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
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_crossmatch.preprocessing.listing import labeled_scans
    from nnunetv2_crossmatch.preprocessing.splits import ensure_splits, known_patients
    from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled

    raw, preprocessed, dataset_json = _dataset(arguments.d)
    plans = PlansManager(str(preprocessed / f"{arguments.p}.json"))
    ensure_splits(preprocessed, list(labeled_scans(raw, dataset_json)), known_patients(raw, preprocessed))
    for configuration in arguments.c:
        cases = preprocess_unlabeled(raw, preprocessed, plans, configuration, arguments.np)
        print(f"{raw.name} {configuration}: {len(cases)} unlabelled cases are ready")
    _report(raw, preprocessed, dataset_json, arguments.np)


def _add_check(commands) -> None:
    command = commands.add_parser(
        "check",
        help="look for unreadable scans, the same scan or patient in training and test, scans unlike the labelled ones",
        epilog="example: nnUNetv2_crossmatch check -d 4",
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("-np", type=int, default=8, metavar="N", help="worker processes (default: %(default)s)")
    command.add_argument(
        "--accept", action="store_true", help="train in spite of the leaks that are found now; they become warnings"
    )
    command.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> None:
    _report(*_dataset(arguments.d), arguments.np, accept=arguments.accept)


def _report(raw: Path, preprocessed: Path, dataset_json: dict, num_processes: int, accept: bool = False) -> None:
    """Print what the check finds; an error ends the program unless it is accepted."""
    from nnunetv2_crossmatch.preprocessing.check import accept_leaks, check_dataset

    findings = check_dataset(raw, preprocessed, dataset_json, num_processes)
    if accept:
        accept_leaks(preprocessed, findings.leaks)
        findings = check_dataset(raw, preprocessed, dataset_json, num_processes)
    for warning in findings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{raw}: " + ", ".join(f"{len(cases)} scans in {part}" for part, cases in findings.content.items()))
    findings.raise_errors(raw.name)


def _dataset(name_or_id: str) -> tuple[Path, Path, dict]:
    """Raw folder, preprocessed folder and dataset.json."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    name = maybe_convert_to_dataset_name(name_or_id)
    return (
        Path(nnUNet_raw) / name,
        Path(nnUNet_preprocessed) / name,
        load_json(str(Path(nnUNet_raw) / name / "dataset.json")),
    )


def _add_convert(commands) -> None:
    command = commands.add_parser(
        "convert",
        help="make a semi-supervised dataset of a benchmark or of a folder of labelled scans",
        epilog="example: nnUNetv2_crossmatch convert acdc Downloads/ACDC -d 27 --labeled 3",
    )
    command.add_argument("kind", choices=["la", "acdc", "pancreas", "isic", "lits", "nifti"], help="the benchmark")
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
    command.add_argument(
        "--duplicates", action="store_true", help="pancreas: keep scans 25 and 70, which are the same as scan 2"
    )
    command.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_crossmatch.dataset_conversion.common import write_dataset

    options = {name: value for name in ("test", "duplicates") if (value := getattr(arguments, name))}
    kinds = {"test": "nifti", "duplicates": "pancreas"}
    if foreign := [f"--{name}" for name in options if kinds[name] != arguments.kind]:
        raise ValueError(f"{' and '.join(foreign)}: {arguments.kind} has no such option.")
    converter = import_module(f"nnunetv2_crossmatch.dataset_conversion.{arguments.kind}")
    conversion = converter.convert(arguments.source, arguments.labeled, **options)
    folder = write_dataset(conversion, arguments.d)
    _report(*_dataset(folder.name), default_num_processes)


def _add_hide_labels(commands) -> None:
    command = commands.add_parser(
        "hide-labels",
        help="make a semi-supervised dataset of a labelled one: what if only some of the labels were there?",
        epilog="example: nnUNetv2_crossmatch hide-labels -d 4 -o 104 --labeled 10%%",
    )
    command.add_argument("-d", required=True, metavar="SRC", help="id or name of the labelled dataset")
    command.add_argument("-o", type=int, required=True, metavar="DST", help="dataset id of the new dataset")
    command.add_argument(
        "--labeled",
        required=True,
        metavar="N",
        help="how many keep their labels, or a share such as 10%%; patients where they are known, else cases",
    )
    command.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    command.add_argument(
        "--group-by",
        metavar="REGEX",
        help="cases of one patient: those whose ids have the same match, or the same first group, e.g. patient\\d+ "
        "(default: patients.json)",
    )
    command.set_defaults(run=_hide_labels)


def _hide_labels(arguments: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_crossmatch.dataset_conversion.hide_labels import hide_labels

    source, _, _ = _dataset(arguments.d)
    folder = hide_labels(source, arguments.o, arguments.labeled, arguments.seed, arguments.group_by)
    _report(*_dataset(folder.name), default_num_processes)


def _add_evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="Dice, Jaccard, 95HD and ASD of predictions, per class and case",
        epilog="example: nnUNetv2_crossmatch evaluate nnUNet_raw/Dataset027_ACDC/labelsTs predicted --benchmark acdc-3",
    )
    command.add_argument("reference", type=Path, metavar="REFERENCE", help="folder of reference masks, e.g. labelsTs")
    command.add_argument("prediction", type=Path, metavar="PREDICTION", help="folder that nnUNetv2_predict wrote")
    command.add_argument("-djfile", type=Path, metavar="FILE", help="dataset.json (default: that of the predictions)")
    command.add_argument(
        "-o", type=Path, metavar="FOLDER", help="for evaluation.json and evaluation.csv (default: PREDICTION)"
    )
    command.add_argument(
        "--benchmark", choices=benchmarks(), metavar="KEY", help=f"show published rows: {', '.join(benchmarks())}"
    )
    command.add_argument("-np", type=int, default=8, metavar="N", help="worker processes (default: %(default)s)")
    command.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders
    from nnunetv2_crossmatch.evaluation.report import (
        foreground_cells,
        format_benchmark,
        format_summary,
        write_csv,
        write_json,
    )
    from nnunetv2_crossmatch.evaluation.summary import summarise

    evaluation = evaluate_folders(arguments.reference, arguments.prediction, arguments.djfile, arguments.np)
    summaries = summarise(evaluation)
    folder = arguments.o or arguments.prediction
    folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation, summaries, folder / "evaluation.json")
    write_csv(evaluation, folder / "evaluation.csv")
    print(format_summary(summaries))
    if arguments.benchmark:
        print("", format_benchmark(arguments.benchmark, {"this result": foreground_cells(summaries)}), sep="\n")
    if evaluation.extra:
        print(f"Not evaluated, having no reference: {', '.join(evaluation.extra)}")
    print(f"Written: {folder / 'evaluation.json'}, {folder / 'evaluation.csv'}")


def _add_pseudo_label(commands) -> None:
    command = commands.add_parser(
        "pseudo-label",
        help="let the trained model of each fold label the unlabelled scans, for nnUNetTrainerPseudoLabel",
        epilog="example: nnUNetv2_crossmatch pseudo-label -d 4 -c 3d_fullres -f 0 1",
    )
    command.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    command.add_argument("-c", required=True, metavar="CONFIG", help="configuration, e.g. 3d_fullres")
    command.add_argument(
        "-tr", default="nnUNetTrainer", metavar="TRAINER", help="whose models label (default: %(default)s)"
    )
    command.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    command.add_argument(
        "-f", nargs="+", type=_fold, metavar="FOLD", help="numbers or all (default: every fold of splits_final.json)"
    )
    command.add_argument(
        "--threshold",
        type=float,
        default=0.9,
        metavar="P",
        help="voxels that are less probable are ignored (default: %(default)s)",
    )
    command.add_argument(
        "-chk", default="checkpoint_final.pth", metavar="FILE", help="checkpoint (default: %(default)s)"
    )
    command.add_argument("-device", choices=["cuda", "cpu", "mps"], default="cuda", help="(default: %(default)s)")
    command.add_argument("-np", type=int, default=3, metavar="N", help="worker processes (default: %(default)s)")
    command.add_argument("--overwrite", action="store_true", help="label anew what was corrected by hand, too")
    command.set_defaults(run=_pseudo_label)


def _fold(value: str) -> int | str:
    return value if value == "all" else int(value)


def _pseudo_label(arguments: argparse.Namespace) -> None:
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_crossmatch.pseudo_labels.predict import write_pseudo_labels

    raw, preprocessed, _ = _dataset(arguments.d)
    written_folds = write_pseudo_labels(
        raw,
        preprocessed,
        PlansManager(str(preprocessed / f"{arguments.p}.json")),
        arguments.c,
        arguments.tr,
        arguments.f,
        arguments.threshold,
        arguments.chk,
        torch.device(arguments.device),
        arguments.np,
        arguments.overwrite,
    )
    for fold, written in written_folds:
        for warning in written.warnings:
            print(f"warning: fold {fold}: {warning}", file=sys.stderr)
        print(
            f"fold {fold}: {len(written.predicted)} labelled, {len(written.current)} were there, "
            f"{len(written.held_out)} left out, being of patients that the fold validates: {written.folder}"
        )
        if written.corrected:
            print(
                f"fold {fold}: corrected by hand and kept (--overwrite replaces them): {', '.join(written.corrected)}"
            )
        if written.confident:
            shares = ", ".join(f"{c}: {share:.0%}" for c, share in written.confident.items())
            print(f"fold {fold}: confident voxels of each predicted class: {shares}")
