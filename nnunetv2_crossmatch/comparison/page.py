"""Compare, write the page, say what came of it: what the commands compare and sweep have in common."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from nnunetv2_crossmatch.comparison.compare import compare_models
from nnunetv2_crossmatch.comparison.report import format_text, write_html, write_json
from nnunetv2_crossmatch.preprocessing.dataset import Dataset


def compare_to_page(
    dataset: Dataset,
    plans: str,
    configuration: str,
    trainers: Sequence[str],
    folds: Sequence[int | str] | None,
    test: bool,
    device: torch.device,
    num_processes: int,
    page: Path | None = None,
) -> str:
    """:func:`compare_models`, written to ``page`` and, beside it, to a JSON file.

    Args:
        page: an HTML file; by default one in the dataset's results folder.

    Returns:
        The result for a terminal.
    """
    comparison = compare_models(dataset, plans, configuration, trainers, folds, test, device, num_processes)
    results = comparison.reference_run.model_folder.parent
    page = page or results / f"comparison__{plans}__{configuration}{'__test' if test else ''}.html"
    command = ["nnUNetv2_crossmatch", "compare", "-d", dataset.name, "-c", configuration, "-p", plans]
    command += ["-tr", *trainers, "-f", *map(str, comparison.folds), *(["--test"] if test else [])]
    write_json(comparison, page.with_suffix(".json"))
    write_html(comparison, dataset.require_raw(), shlex.join(command), page)
    return f"{format_text(comparison)}\nReport: {page}"
