"""What a finished training left in its folder: its log, its records, its costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.nnunet.training_log import TrainingLog
from nnunetv2_crossmatch.preprocessing.splits import SPLITS, read_splits
from nnunetv2_crossmatch.self_training.record import RECORD, model_hash
from nnunetv2_crossmatch.trainers import METHODS
from nnunetv2_crossmatch.trainers.records import read_method, read_resources, read_training
from nnunetv2_crossmatch.utilities.errors import DatasetError


@dataclass(frozen=True)
class TrainedRun:
    """What a finished training left behind.

    Attributes:
        hours: of the training's epochs, times its processes, and of the runs that it could not do without: those that
            made its pseudo-labels, the stock one that it went on from.
        counts: the trainers of these runs.
        made_by: the record of its pseudo-labels, if it has any.
        peak_memory: bytes; None where it was not recorded (nnU-Net alone records none).
        device: on which it was trained.
        training: what ``training.json`` says; {} where nothing was recorded (nnU-Net alone records no cases).
        constants: of the method.
        warnings: what is not known of its costs.
    """

    folder: RunFolder
    log: TrainingLog
    hours: float
    counts: tuple[str, ...]
    made_by: dict
    peak_memory: int | None
    device: str
    training: dict
    constants: dict
    warnings: tuple[str, ...]


def read_run(folder: RunFolder) -> TrainedRun:
    """What is known of a finished training.

    Raises:
        DatasetError: it is not finished; names what is missing and the command that makes it.
    """
    path = folder.path
    if not folder.is_trained:
        option = "--c" if folder.checkpoint("checkpoint_latest.pth").exists() else ""
        raise DatasetError([f"{folder.checkpoint()} is missing: {folder.train_command(option)}"])
    log, resources, debug = folder.log(), read_resources(path), _json(path / "debug.json")
    warnings = []
    if "processes" not in resources and debug.get("is_ddp") == "True":
        warnings.append(f"{path} was trained on several GPUs; how many is not recorded, so its hours count one.")
    hours = log.hours * resources.get("processes", 1)
    before = []
    if made_by := made_with(folder):
        before = _teachers(folder, made_by)
        if not before:
            warnings.append(
                f"The model that made the pseudo-labels of {path} no longer exists; its hours are not counted."
            )
    if stock := began_with(folder):
        if stock.is_trained:
            before.append(read_run(stock))
        else:
            warnings.append(f"{stock.path}, with which {path} began, no longer exists; its hours are not counted.")
    for run in before:
        hours += run.hours
        warnings += run.warnings
    return TrainedRun(
        folder=folder,
        log=log,
        hours=hours,
        counts=tuple(sorted({trainer for run in before for trainer in (run.folder.trainer, *run.counts)})),
        made_by=made_by,
        peak_memory=resources.get("peak_memory_bytes"),
        device=resources.get("device") or debug.get("gpu_name") or debug.get("device") or "not recorded",
        training=read_training(path),
        constants=read_method(path) or ({"threshold": made_by["threshold"]} if made_by else {}),
        warnings=tuple(warnings),
    )


def began_with(run: RunFolder) -> RunFolder | None:
    """The stock run whose network a training went on from."""
    if METHODS.get(run.trainer.partition("_")[0]) != "from_stock":
        return None
    what = run.dataset, "nnUNetTrainer", run.plans, run.configuration, run.fold
    return RunFolder.of(*what, run.model_folder.parent.parent)


def made_with(student: RunFolder) -> dict:
    """The record of a run's pseudo-labels; {} without any."""
    return _json(student.path / RECORD)


def teacher_folders(student: RunFolder, record: dict) -> list[RunFolder]:
    """The folds that made the pseudo-labels of a run, by their record."""
    model = record["trainer"], record["plans"], record["configuration"]
    folds = record.get("folds", [record["fold"]])  # earlier versions knew one only
    return [RunFolder.of(student.dataset, *model, fold, student.model_folder.parent.parent) for fold in folds]


def _teachers(student: RunFolder, record: dict) -> list[TrainedRun]:
    """The runs whose checkpoints made the pseudo-labels, none unless they are still the same ones."""
    folders = teacher_folders(student, record)
    checkpoints = [folder.checkpoint(record["checkpoint"]) for folder in folders]
    known = student not in folders and all(checkpoint.exists() for checkpoint in checkpoints)
    if not known or model_hash(checkpoints) != record["model"]:
        return []
    try:
        return [read_run(folder) for folder in folders]
    except DatasetError:
        return []


def validation_cases(runs: Sequence[TrainedRun], preprocessed_folder: Path) -> dict[int | str, list[str]]:
    """The validation cases of each fold, after making sure that all runs learned from the same labeled cases.

    nnU-Net notes only how many cases there were; such a run's cases are those of today's split if the numbers are
    right.

    Raises:
        DatasetError: names the runs and the cases that differ.
    """
    file = preprocessed_folder / SPLITS
    splits = read_splits(preprocessed_folder)
    problems = []
    first: dict[int | str, tuple[TrainedRun, list[set[str]]]] = {}
    for run in runs:
        path, fold, known = run.folder.path, run.folder.fold, run.training
        if not known and fold != "all" and int(fold) < len(splits):
            known = {"labeled": splits[int(fold)]["train"], "validation": splits[int(fold)]["val"]}
        if not known:
            continue
        parts = [set(known["labeled"]), set(known["validation"])]
        numbers = len(parts[0]), len(parts[1])
        if run.log.split not in (None, numbers):
            problems.append(
                f"{path} was trained on {run.log.split[0]} labeled cases and held out {run.log.split[1]}, but "
                f"{file} has {numbers[0]} and {numbers[1]} for fold {fold}: it has changed since. Train this run again."
            )
            continue
        other, others = first.setdefault(fold, (run, parts))
        for what, part, of_other in zip(("trained on", "validates"), parts, others, strict=True):
            if part != of_other:
                problems.append(
                    f"{path} {what} other labeled cases than {other.folder.path}; only one of them has "
                    f"{', '.join(sorted(part ^ of_other))}. Train both with the same {file}."
                )
    found = {fold: sorted(validation) for fold, (_, (_, validation)) in first.items() if fold != "all"}
    everywhere = [case for cases in found.values() for case in cases]
    if twice := sorted({case for case in everywhere if everywhere.count(case) > 1}):
        problems.append(f"{file} validates {', '.join(twice)} in several folds. Compare one of these folds (-f).")
    if problems:
        raise DatasetError(problems)
    return found


def _json(file: Path) -> dict:
    return load_json(str(file)) if file.exists() else {}
