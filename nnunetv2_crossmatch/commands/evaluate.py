"""nnUNetv2_crossmatch evaluate."""

import argparse
import sys
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_arguments, add_command
from nnunetv2_crossmatch.evaluation.published import benchmarks


def add(commands: Commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        "Dice, Jaccard, 95HD and ASD of predictions, per class and case",
        "nnUNet_raw/Dataset027_ACDC/labelsTs predicted --benchmark acdc-3",
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
    add_arguments(command, "-np")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders, header_warnings
    from nnunetv2_crossmatch.evaluation.report import (
        foreground_cells,
        format_benchmark,
        format_summary,
        write_csv,
        write_json,
    )
    from nnunetv2_crossmatch.evaluation.summary import summarize

    evaluation = evaluate_folders(arguments.reference, arguments.prediction, arguments.djfile, arguments.np)
    for warning in (*evaluation.left_out, *header_warnings(evaluation.odd_headers)):
        print(f"warning: {warning}", file=sys.stderr)
    summaries = summarize(evaluation)
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
