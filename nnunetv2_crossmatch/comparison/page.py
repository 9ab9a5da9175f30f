"""Compare, write the page, say what came of it: what the commands compare and sweep have in common."""

import shlex
from collections.abc import Sequence
from hashlib import sha256
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
    seeds: int = 1,
    page: Path | None = None,
) -> str:
    """:func:`compare_models`, written to ``page`` and, beside it, to a JSON file.

    Args:
        page: an HTML file; by default one in the dataset's results folder, named by what was compared.

    Returns:
        The result for a terminal.
    """
    comparison = compare_models(dataset, plans, configuration, trainers, folds, test, device, num_processes, seeds)
    what = f"{plans}__{configuration}__folds_{'_'.join(map(str, comparison.folds))}{'__test' if test else ''}"
    what += f"__seeds_{seeds}" if seeds > 1 else ""
    page = page or comparison.reference_run.model_folder.parent / f"comparison__{_pair(trainers)}__{what}.html"
    command = ["nnUNetv2_crossmatch", "compare", "-d", dataset.name, "-c", configuration, "-p", plans]
    command += ["-tr", *trainers, "-f", *map(str, comparison.folds), *(["--test"] if test else [])]
    command += ["--seeds", str(seeds)] if seeds > 1 else []
    write_json(comparison, page.with_suffix(".json"))
    write_html(comparison, dataset.require_raw(), shlex.join(command), page)
    return f"{format_text(comparison)}\nReport: {page}"


def _pair(trainers: Sequence[str]) -> str:
    """Their names, as far as a file's name may be long."""
    names = "_vs_".join(trainers)
    return names if len(names) < 120 else f"{names[:100]}_{sha256(names.encode()).hexdigest()[:8]}"
