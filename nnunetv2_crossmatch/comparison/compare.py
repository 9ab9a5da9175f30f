"""Trained models of one dataset on the same cases: scores, differences, costs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_crossmatch.comparison import paired
from nnunetv2_crossmatch.comparison.runs import FINAL, Run, check_comparable, read_run
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders
from nnunetv2_crossmatch.evaluation.summary import FOREGROUND, Evaluation, Summary, summarise
from nnunetv2_crossmatch.preprocessing.files import INCOMING
from nnunetv2_crossmatch.preprocessing.listing import DatasetError
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, known_patients


@dataclass(frozen=True)
class Model:
    """One trainer's runs and how well they did.

    Attributes:
        predictions: mask file of each evaluated case.
    """

    trainer: str
    runs: list[Run]
    evaluation: Evaluation
    predictions: dict[str, Path]

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        return summarise(self.evaluation)

    @property
    def hours(self) -> float:
        return sum(run.hours for run in self.runs)

    @property
    def peak_memory(self) -> int | None:
        """In bytes, the most of all runs; None unless every run recorded it."""
        peaks = [run.peak_memory for run in self.runs]
        known = [peak for peak in peaks if peak is not None]
        return max(known) if known and len(known) == len(peaks) else None


@dataclass(frozen=True)
class Comparison:
    """Models on the same cases; the first one is the reference.

    Attributes:
        test: whether the cases are the test scans, predicted by all folds together; else each fold's validation cases.
        truths: reference mask of each case.
        units: of each case, its patient, or the case itself where patients are not known.
        differences: of every model but the first, per class and metric.
        warnings: what a reader should know besides.
    """

    dataset: str
    plans: str
    configuration: str
    folds: list[int | str]
    test: bool
    models: list[Model]
    truths: dict[str, Path]
    units: list[str]
    differences: dict[str, dict[str, dict[str, paired.Difference]]]
    warnings: list[str]

    @property
    def noun(self) -> str:
        return "patients" if len(set(self.units)) < len(self.truths) else "cases"

    @property
    def verdicts(self) -> dict[str, str]:
        return {
            trainer: paired.verdict(classes[FOREGROUND]["dice"], self.noun)
            for trainer, classes in self.differences.items()
        }


def compare_models(
    raw_folder: Path,
    preprocessed_folder: Path,
    results_folder: Path,
    plans: str,
    configuration: str,
    trainers: Sequence[str],
    folds: Sequence[int | str] | None,
    test: bool,
    device: torch.device,
    num_processes: int,
) -> Comparison:
    """Compare trained models with the first one.

    Args:
        results_folder: the dataset's.
        folds: numbers, with ``test`` also "all"; None for all of ``splits_final.json``.
        test: predict ``imagesTs`` (unless that was done with these checkpoints) and evaluate with ``labelsTs``.
        device: for these predictions.

    Raises:
        DatasetError: runs that are not finished, not validated, or that cannot be compared: other labelled cases,
            other validation cases. All of them are named.
        ValueError: no such choice.
    """
    if len(set(trainers)) != len(trainers) or len(trainers) < 2:
        raise ValueError(f"Name two or more different trainers, the reference first, not {' '.join(trainers)}.")
    if folds is None:
        file = preprocessed_folder / SPLITS
        folds = list(range(len(load_json(str(file))))) if file.exists() else ["all"]
    if "all" in folds and not test:
        raise ValueError("Fold all validates the cases that it was trained on. Use --test, or name other folds.")

    names = {trainer: results_folder / f"{trainer}__{plans}__{configuration}" for trainer in trainers}
    runs: dict[str, list[Run]] = {trainer: [] for trainer in trainers}
    problems: list[str] = []
    for trainer, folder in names.items():
        for fold in folds:
            try:
                runs[trainer].append(read_run(folder, fold))
            except DatasetError as e:
                problems += e.problems
    if problems:
        raise DatasetError(problems)
    every_run = [run for of_trainer in runs.values() for run in of_trainer]
    check_comparable(every_run, preprocessed_folder)

    if test:
        truth_folder = raw_folder / "labelsTs"
        if not truth_folder.is_dir():
            raise DatasetError([f"{truth_folder} is missing. Put the test scans' masks there, or leave out --test."])
        folders = {
            trainer: [_predict_test(folder, folds, raw_folder / "imagesTs", device)]
            for trainer, folder in names.items()
        }
    else:
        truth_folder = preprocessed_folder / "gt_segmentations"
        _check_validation(every_run)
        folders = {trainer: [run.folder / "validation" for run in runs[trainer]] for trainer in trainers}

    ending = load_json(str(raw_folder / "dataset.json"))["file_ending"]
    models = []
    for trainer in trainers:
        predictions = {
            file.name.removesuffix(ending): file
            for folder in folders[trainer]
            for file in sorted(folder.glob("*" + ending))
        }
        parts = [
            evaluate_folders(
                truth_folder,
                folder,
                raw_folder / "dataset.json",
                num_processes,
                None if test else [case for case, file in predictions.items() if file.parent == folder],
            )
            for folder in folders[trainer]
        ]
        models.append(Model(trainer, runs[trainer], _joined(parts), predictions))

    reference = models[0].evaluation
    if problems := [
        f"{model.trainer} and {trainers[0]} predicted different cases; only one of them has "
        f"{', '.join(sorted(set(model.evaluation.cases) ^ set(reference.cases)))}. Compare runs of the same split."
        for model in models[1:]
        if model.evaluation.cases != reference.cases
    ]:
        raise DatasetError(problems)
    patients = known_patients(raw_folder, preprocessed_folder)
    units = [patients.get(case, case) for case in reference.cases]
    return Comparison(
        raw_folder.name,
        plans,
        configuration,
        list(folds),
        test,
        models,
        {case: truth_folder / (case + ending) for case in reference.cases},
        units,
        {model.trainer: paired.compare(reference, model.evaluation, units) for model in models[1:]},
        _warnings(runs),
    )


def _check_validation(runs: list[Run]) -> None:
    """Raises DatasetError where a run was not validated after its training, or others validated other cases."""
    problems = []
    first: dict[int | str, tuple[Run, set[str]]] = {}
    for run in runs:
        trainer, plans, configuration = run.folder.parent.name.split("__")
        if not run.log.validated or not (run.folder / "validation" / "summary.json").exists():
            problems.append(
                f"{run.folder} was not validated after its training: nnUNetv2_train {run.folder.parent.parent.name} "
                f"{configuration} {run.fold} -tr {trainer} -p {plans} --val"
            )
            continue
        summary = load_json(str(run.folder / "validation" / "summary.json"))
        cases = {Path(case["reference_file"]).name for case in summary["metric_per_case"]}
        other, others = first.setdefault(run.fold, (run, cases))
        if cases != others:
            problems.append(
                f"{run.folder} and {other.folder} validated different cases; only one of them has "
                f"{', '.join(sorted(cases ^ others))}. Train both with the same split."
            )
    if problems:
        raise DatasetError(problems)


def _predict_test(model_folder: Path, folds: Sequence[int | str], images: Path, device: torch.device) -> Path:
    """The folder of the test scans' masks; predicted now unless it is newer than every checkpoint."""
    folder = model_folder / f"test_fold_{'_'.join(map(str, folds))}"
    checkpoints = [model_folder / f"fold_{fold}" / FINAL for fold in folds]
    if folder.is_dir() and folder.stat().st_mtime >= max(file.stat().st_mtime for file in (*checkpoints, images)):
        return folder
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here. Use -device cpu.")
    unfinished = folder.with_name(INCOMING + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder), tuple(folds), FINAL)
    predictor.predict_from_files(
        str(images), str(unfinished), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _joined(parts: list[Evaluation]) -> Evaluation:
    """The cases of several folds in one, sorted."""
    cases = [case for part in parts for case in part.cases]
    order = np.argsort(cases)
    return Evaluation(
        [cases[i] for i in order],
        parts[0].classes,
        np.concatenate([part.values for part in parts])[order],
        np.concatenate([part.missed for part in parts])[order],
        [],
    )


def _warnings(runs: dict[str, list[Run]]) -> list[str]:
    warnings = []
    if (others := len(runs) - 1) > 1:
        warnings.append(f"{others} comparisons: each has one chance in twenty of finding what is not there.")
    lists: dict[int | str, tuple[Run, str]] = {}
    for run in (run for of_trainer in runs.values() for run in of_trainer):
        if run.unlabeled is None:
            continue
        other, digest = lists.setdefault(run.fold, (run, run.unlabeled))
        if digest != run.unlabeled:
            warnings.append(f"{run.trainer} and {other.trainer} used different unlabelled scans in fold {run.fold}.")
    devices = {run.device for of_trainer in runs.values() for run in of_trainer if run.device}
    if len(devices) > 1:
        warnings.append(f"Hours and memory are of different devices: {', '.join(sorted(devices))}.")
    epochs = {trainer: max(len(run.log.epochs) for run in of_trainer) for trainer, of_trainer in runs.items()}
    if len(set(epochs.values())) > 1:
        listed = ", ".join(f"{trainer} {number}" for trainer, number in epochs.items())
        warnings.append(f"The trainings have different numbers of epochs: {listed}. Look at their hours.")
    return warnings
