"""nnUNetv2_crossmatch compare."""

import argparse
import shlex
from pathlib import Path

from nnunetv2_crossmatch.commands.shared import add_arguments, add_command, dataset


def add(commands) -> None:
    command = add_command(
        commands,
        "compare",
        "did the unlabeled scans help? trained models on the same cases, with a page to show",
        "-d 4 -c 3d_fullres -tr nnUNetTrainer nnUNetTrainerCrossMatch",
    )
    add_arguments(command, "-d", "-c", "-p", "-f", "-np")
    command.add_argument(
        "-tr", required=True, nargs="+", metavar="TRAINER", help="trainers; the others are compared with the first"
    )
    command.add_argument(
        "--test",
        action="store_true",
        help="on imagesTs and labelsTs, predicted by all folds, not on validation",
    )
    command.add_argument(
        "-o", type=Path, metavar="FILE.html", help="the page (default: in nnUNet_results); FILE.json comes beside it"
    )
    command.add_argument(
        "-device", choices=["cuda", "cpu", "mps"], default="cuda", help="--test: predicts on it (default: %(default)s)"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch
    from nnunetv2.paths import nnUNet_results

    from nnunetv2_crossmatch.comparison.compare import compare_models
    from nnunetv2_crossmatch.comparison.report import format_text, write_html, write_json

    raw, preprocessed, _ = dataset(arguments.d)
    results = Path(nnUNet_results) / raw.name
    comparison = compare_models(
        raw,
        preprocessed,
        results,
        arguments.p,
        arguments.c,
        arguments.tr,
        arguments.f,
        arguments.test,
        torch.device(arguments.device),
        arguments.np,
    )
    name = f"comparison__{arguments.p}__{arguments.c}{'__test' if arguments.test else ''}.html"
    page = arguments.o or results / name
    command = ["nnUNetv2_crossmatch", "compare", "-d", raw.name, "-c", arguments.c, "-p", arguments.p]
    command += ["-tr", *arguments.tr, "-f", *map(str, comparison.folds), *(["--test"] if arguments.test else [])]
    write_json(comparison, page.with_suffix(".json"))
    write_html(comparison, raw, shlex.join(command), page)
    print(format_text(comparison))
    print(f"Report: {page}")
