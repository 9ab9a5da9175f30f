"""Trained models of one dataset on the same cases: scores, differences, costs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunetv2_crossmatch.comparison import paired
from nnunetv2_crossmatch.comparison.runs import TrainedRun, read_run, validation_cases
from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders, header_warnings
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, Evaluation
from nnunetv2_crossmatch.nnunet.predictor import load_predictor
from nnunetv2_crossmatch.nnunet.run_folder import FINAL, RunFolder, plans_of_seeds
from nnunetv2_crossmatch.preprocessing.dataset import Dataset
from nnunetv2_crossmatch.preprocessing.image_folder import group_channels, left_out_of
from nnunetv2_crossmatch.preprocessing.manifest import source_stamp
from nnunetv2_crossmatch.preprocessing.splits import known_patients, read_splits
from nnunetv2_crossmatch.utilities.errors import DatasetError, printable, some
from nnunetv2_crossmatch.utilities.files import INCOMING, NO_UNICODE, is_unicode, write_json

MADE_OF = "made_of.json"


@dataclass(frozen=True)
class Model:
    """One trainer's runs and how well they did.

    Attributes:
        runs: of all seeds and folds.
        seeds: the evaluation of each seed.
        predictions: mask file of each evaluated case, the first seed's.
    """

    trainer: str
    runs: list[TrainedRun]
    seeds: list[Evaluation]
    predictions: dict[str, Path]

    @cached_property
    def evaluation(self) -> Evaluation:
        """The mean over the seeds."""
        return mean_of_seeds(self.seeds)

    @property
    def hours(self) -> float:
        """Of all folds, the mean over the seeds."""
        return sum(run.hours for run in self.runs) / len(self.seeds)

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
        warnings: what else a reader should know.
    """

    folds: list[int | str]
    test: bool
    models: list[Model]
    truths: dict[str, Path]
    units: list[str]
    differences: dict[str, dict[str, dict[str, paired.Difference]]]
    warnings: list[str]

    @property
    def reference_run(self) -> RunFolder:
        """A run of the reference, for the dataset, plans and configuration that all have in common."""
        return self.models[0].runs[0].folder

    @property
    def noun(self) -> str:
        return "patients" if len(set(self.units)) < len(self.truths) else "cases"

    @property
    def few(self) -> bool:
        """Too few patients or cases for an interval."""
        return len(set(self.units)) < paired.FEWEST

    @property
    def titles(self) -> dict[str, str]:
        """What is shown: every class, and first their mean unless there is one class only."""
        classes = {name: name for name in self.models[0].evaluation.classes}
        return {MEAN_OF_CLASSES: MEAN_OF_CLASSES, **classes} if len(classes) > 1 else classes

    def dice_change(self, model: Model) -> NDArray[np.float64]:
        """A model's Dice minus the reference's, (cases, classes)."""
        before, after = (paired.scores(m.evaluation)[:, :, METRICS.index("dice")] for m in (self.models[0], model))
        return after - before

    @property
    def verdicts(self) -> dict[str, paired.Verdict]:
        return {
            model.trainer: self._verdict(model, self.differences[model.trainer][MEAN_OF_CLASSES]["dice"])
            for model in self.models[1:]
        }

    def _verdict(self, model: Model, difference: paired.Difference) -> paired.Verdict:
        found = paired.verdict(difference, self.noun)
        repeats = paired.beside_repeats(self.dice_of_seeds(self.models[0]), self.dice_of_seeds(model))
        return replace(found, sentence=found.sentence + repeats)

    def dice_of_seeds(self, model: Model) -> NDArray[np.float64]:
        """Mean over classes and units, (seeds,)."""
        dices = [paired.scores(seed)[:, :, METRICS.index("dice")] for seed in model.seeds]
        return np.array([paired.by_unit(dice, self.units).mean() for dice in dices])


def compare_models(
    dataset: Dataset,
    plans: str,
    configuration: str,
    trainers: Sequence[str],
    folds: Sequence[int | str] | None,
    test: bool,
    device: torch.device,
    num_processes: int,
    seeds: int = 1,
) -> Comparison:
    """Compare trained models with the first one.

    Args:
        trainers: the first one is the reference.
        folds: numbers, with ``test`` also "all"; None for all of ``splits_final.json``.
        test: predict ``imagesTs`` (unless that was done with these checkpoints) and evaluate with ``labelsTs``.
        device: for these predictions.
        seeds: how many trainings of each trainer and fold count, see :func:`plans_of_seeds`.

    Raises:
        DatasetError: runs that are not finished, not validated, or that cannot be compared: other labeled cases,
            other validation cases. All of them are named.
        ValueError: no such choice.
    """
    if len(set(trainers)) != len(trainers) or len(trainers) < 2:
        raise ValueError(f"Name two or more different trainers, the reference first, not {' '.join(trainers)}.")
    raw_folder, preprocessed_folder = dataset.require_raw(), dataset.preprocessed
    if folds is None:
        folds = list(range(len(read_splits(preprocessed_folder)))) or ["all"]
    folds = list(dict.fromkeys(folds))
    if "all" in folds and not test:
        raise ValueError("Fold all validates the cases that it was trained on. Use --test, or name other folds.")

    repeats = [(trainer, name) for trainer in trainers for name in plans_of_seeds(plans, seeds)]
    of_repeat: dict[tuple[str, str], list[TrainedRun]] = {repeat: [] for repeat in repeats}
    problems: list[str] = []
    for (trainer, name), found in of_repeat.items():
        for fold in folds:
            try:
                found.append(read_run(RunFolder.of(dataset.name, trainer, name, configuration, fold)))
            except DatasetError as e:
                problems += e.problems
    if problems and seeds > 1:
        what = f"-d {dataset.name} -c {configuration} -p {plans} -tr {' '.join(trainers)} --seeds {seeds}"
        problems.append(f"All of them are trained by: nnUNetv2_crossmatch sweep {what} -f {' '.join(map(str, folds))}")
    if problems:
        raise DatasetError(problems)
    every_run = [run for found in of_repeat.values() for run in found]
    runs = {trainer: [run for run in every_run if run.folder.trainer == trainer] for trainer in trainers}
    validation = validation_cases(every_run, preprocessed_folder)

    if test:
        truth_folder = raw_folder / "labelsTs"
        if not truth_folder.is_dir():
            raise DatasetError([f"{truth_folder} is missing. Put the test scans' masks there, or leave out --test."])
        scans = group_channels(raw_folder / "imagesTs", dataset.json)  # nnU-Net would predict others without a word
        if nameless := [file for files in scans.values() for file in files if not is_unicode(file)]:
            raise DatasetError(f"{file} {NO_UNICODE}. Rename it." for file in nameless)
        folders = {
            repeat: [_predict_test([run.folder for run in found], raw_folder / "imagesTs", device)]
            for repeat, found in of_repeat.items()
        }
    else:
        truth_folder = preprocessed_folder / "gt_segmentations"
        if problems := [
            f"{run.folder.path} was not validated after its training: {run.folder.train_command('--val')}"
            for run in every_run
            if not run.folder.is_validated
        ]:
            raise DatasetError(problems)
        folders = {repeat: [run.folder.validation for run in found] for repeat, found in of_repeat.items()}

    ending = dataset.json["file_ending"]
    wanted = [None] if test else [validation[fold] for fold in folds]
    parts = {
        repeat: [
            evaluate_folders(truth_folder, folder, raw_folder / "dataset.json", num_processes, cases)
            for folder, cases in zip(of_folds, wanted, strict=True)
        ]
        for repeat, of_folds in folders.items()
    }
    models = []
    for trainer in trainers:
        predictions = {
            case: folder / (case + ending)
            for folder, part in zip(folders[trainer, plans], parts[trainer, plans], strict=True)
            for case in part.cases
        }
        evaluations = [_joined(parts[repeat]) for repeat in repeats if repeat[0] == trainer]
        models.append(Model(trainer, runs[trainer], evaluations, predictions))
    reference = models[0].evaluation
    odd = {file: what for model in models for file, what in model.evaluation.odd_headers.items()}
    patients = known_patients(raw_folder, preprocessed_folder)
    units = [patients.get(case, case) for case in reference.cases]
    return Comparison(
        list(folds),
        test,
        models,
        {case: truth_folder / (case + ending) for case in reference.cases},
        units,
        {model.trainer: paired.compare(reference, model.evaluation, units) for model in models[1:]},
        [
            *header_warnings(odd),
            *_warnings(runs),
            *(_not_compared(raw_folder, reference, dataset.json) if test else []),
        ],
    )


def _not_compared(raw_folder: Path, evaluation: Evaluation, dataset_json: dict) -> list[str]:
    """Test scans that are not, or not whole, among what was evaluated."""
    lines = [*left_out_of(raw_folder / "imagesTs", dataset_json), *evaluation.left_out]
    if evaluation.extra:
        lines.append(f"{len(evaluation.extra)} test scans have no mask in labelsTs: {some(evaluation.extra)}.")
    return list(map(printable, lines))


def _predict_test(runs: Sequence[RunFolder], images: Path, device: torch.device) -> Path:
    """The folder of the test scans' masks; predicted now unless these checkpoints predicted these images."""
    model_folder, folds = runs[0].model_folder, [run.fold for run in runs]
    folder = model_folder / f"test_fold_{'_'.join(map(str, folds))}"
    made_of = {
        "checkpoints": source_stamp([run.checkpoint() for run in runs]),
        "images": source_stamp(sorted(images.iterdir())),
    }
    if (folder / MADE_OF).exists() and load_json(str(folder / MADE_OF)) == made_of:
        return folder
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("There is no CUDA device here. Use -device cpu.")
    unfinished = folder.with_name(INCOMING + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    load_predictor(model_folder, folds, FINAL, device).predict_from_files(
        str(images), str(unfinished), num_processes_preprocessing=1, num_processes_segmentation_export=1
    )
    write_json(made_of, unfinished / MADE_OF)
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
        np.concatenate([part.in_reference for part in parts])[order],
        parts[0].extra if len(parts) == 1 else [],  # each fold predicts its own cases of those that have a reference
        parts[0].left_out,
        {file: what for part in parts for file, what in part.odd_headers.items()},
        parts[0].without_spacing,
    )


def mean_of_seeds(seeds: list[Evaluation]) -> Evaluation:
    """Of the same cases; ``missed`` is what at least one seed missed."""
    if len(seeds) == 1:
        return seeds[0]
    values = np.mean([paired.scores(seed) for seed in seeds], axis=0)
    undefined = np.all([np.isnan(seed.values) for seed in seeds], axis=0)
    return replace(
        seeds[0],
        values=np.where(undefined, np.nan, values),
        missed=np.any([seed.missed for seed in seeds], axis=0),
        odd_headers={file: what for seed in seeds for file, what in seed.odd_headers.items()},
    )


def _warnings(runs: dict[str, list[TrainedRun]]) -> list[str]:
    warnings = []
    if (others := len(runs) - 1) > 1:
        warnings.append(f"{others} comparisons: each has one chance in twenty of finding what is not there.")
    every_run = [run for of_trainer in runs.values() for run in of_trainer]
    first: dict[int | str, TrainedRun] = {}
    for run in every_run:
        warnings += run.warnings
        if run.folder.fold == "all" and not run.training:
            warnings.append(f"{run.folder.path}: nnU-Net does not record the labeled cases of fold all.")
        if run.training:
            other = first.setdefault(run.folder.fold, run)
            if run.training["unlabeled"] != other.training["unlabeled"]:
                warnings.append(f"{run.folder} and {other.folder} used other unlabeled scans.")
    of_model: dict[Path, TrainedRun] = {}
    for run in every_run:
        of_model.setdefault(run.folder.model_folder, run)
    reference, *others_runs = of_model.values()
    for run in others_runs:
        if changed := _different_plans(reference, run):
            pair = f"{run.folder} was trained with other plans than {reference.folder}"
            warnings.append(f"{pair}: {', '.join(changed)}.")
    if len(devices := {run.device for run in every_run}) > 1:
        warnings.append(f"Hours and memory are of different devices: {', '.join(sorted(devices))}.")
    epochs = {trainer: max(len(run.log.epochs) for run in of_trainer) for trainer, of_trainer in runs.items()}
    if len(set(epochs.values())) > 1:
        listed = ", ".join(f"{trainer} {number}" for trainer, number in epochs.items())
        warnings.append(f"The trainings have different numbers of epochs: {listed}. Look at their hours.")
    return list(dict.fromkeys(warnings))


def _different_plans(run: TrainedRun, other: TrainedRun) -> list[str]:
    """Keys of the configuration in which the model folders' plans differ."""
    configurations = []
    for folder in (run.folder, other.folder):
        plans = PlansManager(str(folder.model_folder / "plans.json"))
        configurations.append(plans.get_configuration(folder.configuration).configuration)
    one, two = configurations
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
