"""nnUNetv2_crossmatch evaluate."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import Commands, add_arguments, add_command, say_next
from nnunetv2_crossmatch.dataset_conversion import CONVERTERS


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
    benchmarks = [f"{name}-{number}" for name, of in CONVERTERS.items() for number in of.published]
    command.add_argument(
        "--benchmark", choices=benchmarks, metavar="KEY", help=f"show published rows: {', '.join(benchmarks)}"
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
    from nnunetv2_crossmatch.evaluation.summary import isic_score, summarize

    evaluation = evaluate_folders(arguments.reference, arguments.prediction, arguments.djfile, arguments.np)
    other = of_other_data(arguments.benchmark, evaluation.classes, len(evaluation.cases)) if arguments.benchmark else []
    for warning in (*evaluation.left_out, *header_warnings(evaluation.odd_headers), *other):
        print(f"warning: {warning}", file=sys.stderr)
    summaries = summarize(evaluation)
    folder = arguments.o or arguments.prediction
    folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation, summaries, folder / "evaluation.json")
    write_csv(evaluation, folder / "evaluation.csv")
    print(format_summary(summaries, evaluation.without_spacing))
    if arguments.benchmark:
        print("", format_benchmark(arguments.benchmark, {"this result": foreground_cells(summaries)}), sep="\n")
        if arguments.benchmark.startswith("isic-"):
            print(f"ISIC 2018's own score, Jaccard below 0.65 counting as 0: {100 * isic_score(evaluation):.2f} %")
    if evaluation.extra:
        print(f"Not evaluated, having no reference: {', '.join(evaluation.extra)}")
    print(f"Written: {folder / 'evaluation.json'}, {folder / 'evaluation.csv'}")
    say_next("nnUNetv2_crossmatch compare -d DATASET -c CONFIG -tr nnUNetTrainer TRAINER --test")


def of_other_data(benchmark: str, classes: Sequence[str], cases: int) -> list[str]:
    """A line if these are not the classes or the number of test cases that the published rows are of."""
    known = CONVERTERS[benchmark.partition("-")[0]]
    if list(known.classes) == list(classes) and cases in known.test_cases:
        return []
    numbers = " or ".join(map(str, known.test_cases))
    theirs = f"its rows are of {numbers} cases with {', '.join(known.classes)}"
    return [
        f"--benchmark {benchmark}: {theirs}; these are {cases} with {', '.join(classes)}, so they are no comparison."
    ]
