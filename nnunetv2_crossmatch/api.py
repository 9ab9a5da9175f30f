"""What the commands do, for Python: datasets by id or name, results in place of print, errors are exceptions."""

import os
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_crossmatch.comparison.compare import Comparison, compare_models
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders
from nnunetv2_crossmatch.evaluation.summary import Evaluation
from nnunetv2_crossmatch.preprocessing.check import Findings, check_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled
from nnunetv2_crossmatch.trainers import catalog
from nnunetv2_crossmatch.utilities.devices import as_device


def check(dataset: int | str, num_processes: int = 8) -> Findings:
    """Look for unreadable scans, the same scan or patient in training and test, scans unlike the labeled ones.

    Returns:
        Lines: ``bad`` and ``leaks`` stop a training, ``warnings`` do not.

    Raises:
        ValueError, FileNotFoundError: there is no such dataset.
        DatasetError: its files that were written by hand are wrong.
    """
    return check_dataset(_find(dataset), num_processes)


def preprocess(
    dataset: int | str, configurations: str | Sequence[str], plans: str = "nnUNetPlans", num_processes: int = 8
) -> dict[str, list[str]]:
    """Preprocess the unlabeled scans with the plans of the labeled ones, e.g. for "3d_fullres".

    Looks for no leaks, which the command does afterwards: that is :func:`check`.

    Returns:
        For each configuration the unlabeled cases that are ready.

    Raises:
        ValueError, FileNotFoundError: there is no such dataset, or it was not planned.
        DatasetError: scans that cannot be used.
    """
    found = _find(dataset)
    prepare_splits(found)  # first: whoever removed the old ones has new ones, whatever the plans are
    manager = found.plans(plans)
    names = [configurations] if isinstance(configurations, str) else configurations
    return {name: preprocess_unlabeled(Planned(found, manager, name), num_processes) for name in names}


def compare(
    dataset: int | str,
    configuration: str,
    trainers: Sequence[str],
    folds: Sequence[int | str] | None = None,
    plans: str = "nnUNetPlans",
    test: bool = False,
    device: str = "auto",
    num_processes: int = 8,
    seeds: int = 1,
) -> Comparison:
    """Compare trained models with the first of ``trainers``, on the same cases; the command writes a page, too.

    Args:
        folds: all by default.
        test: on imagesTs and labelsTs, predicted on ``device`` by all folds, not on the validation cases.
        device: cuda, cpu or mps; auto: CUDA, or else MPS, or else the CPU.
        seeds: how many trainings of each trainer and fold there are, by ``sweep --seeds``.

    Returns:
        ``verdicts`` has a sentence for each trainer, ``differences`` the figures of each class and metric.

    Raises:
        ValueError, FileNotFoundError: there is no such dataset or choice.
        DatasetError: runs that are not finished or cannot be compared.
    """
    what = _find(dataset), plans, configuration, trainers, folds, test
    on = as_device(device if test else "cpu")  # else nothing is predicted
    return compare_models(*what, on, num_processes, seeds)


def evaluate(
    reference: str | os.PathLike[str],
    prediction: str | os.PathLike[str],
    dataset_json: str | os.PathLike[str] | None = None,
    num_processes: int = 8,
) -> Evaluation:
    """Dice, Jaccard, 95HD and ASD of a folder of predictions, per class and case.

    Args:
        reference: folder of masks such as labelsTs.
        prediction: folder that nnUNetv2_predict wrote.
        dataset_json: by default that of the predictions.

    Returns:
        ``values`` is (cases, classes, metrics) in the order of ``evaluation.case.METRICS``.

    Raises:
        DatasetError: missing predictions, masks that cannot be compared.
    """
    labels = Path(dataset_json) if dataset_json is not None else None
    return evaluate_folders(Path(reference), Path(prediction), labels, num_processes)


def list_trainers() -> list[catalog.Entry]:
    """Every trainer: idea, cost of a step, epochs, measured Dice."""
    return catalog.entries()


def _find(dataset: int | str) -> Dataset:
    return Dataset.find(str(dataset))
