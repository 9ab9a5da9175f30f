"""What a finished training left in its folder: its log, its records, its costs."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunetv2_crossmatch.preprocessing.splits import SPLITS
from nnunetv2_crossmatch.self_training.record import RECORD
from nnunetv2_crossmatch.trainers.records import read_method, read_resources, read_training
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import sha256_of

FINAL = "checkpoint_final.pth"
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: (.*)")
_SPLIT = re.compile(r"This (?:random 80:20 )?split has (\d+) training and (\d+) validation cases\.")
_NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)"


@dataclass
class TrainingLog:
    """nnU-Net's ``training_log_*.txt`` of one fold, all of them; an epoch that was trained twice counts once.

    Attributes:
        epochs: of the last training that began at epoch 0, each with its ``train_loss``, ``val_loss``, ``dice`` (mean
            pseudo Dice), ``seconds`` and, named ``unlabeled/...``, the curves of the unlabeled part.
        split: numbers of labeled cases that were trained on and held out; None for fold all.
        unlabeled: number of unlabeled cases; None where none are used.
        validated: whether the last thing done was a validation.
    """

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    split: tuple[int, int] | None = None
    unlabeled: int | None = None
    validated: bool = False

    @classmethod
    def read(cls, folder: Path) -> "TrainingLog":
        log, epoch, split = cls(), 0, None
        # nnU-Net writes year_month_day_hour_minute_second into the name, without leading zeros
        for file in sorted(
            folder.glob("training_log_*.txt"), key=lambda f: [int(n) for n in re.findall(r"\d+", f.stem)]
        ):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if not (message := _LINE.match(line)):
                    continue
                text = message[1].strip()
                if found := re.fullmatch(r"Epoch (\d+)", text):
                    epoch = int(found[1])
                    log.split, log.validated = split, False  # a validation alone reads the split, too
                    if epoch == 0:
                        log.epochs.clear()
                    log.epochs[epoch] = {}
                elif epoch in log.epochs:
                    log.epochs[epoch] |= _values(text)
                if found := _SPLIT.fullmatch(text):
                    split = int(found[1]), int(found[2])
                elif found := re.match(r"(\d+) unlabeled cases; ", text):
                    log.unlabeled = int(found[1])
                elif text == "Validation complete":
                    log.validated = True
        return log

    @property
    def hours(self) -> float:
        """Of the epochs, validation after the training not included."""
        return sum(epoch.get("seconds", 0.0) for epoch in self.epochs.values()) / 3600

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs and values, where there are some."""
        points = [(number, epoch[name]) for number, epoch in sorted(self.epochs.items()) if name in epoch]
        return [number for number, _ in points], [value for _, value in points]


def _values(text: str) -> dict[str, float]:
    for name in ("train_loss", "val_loss"):
        if found := re.fullmatch(f"{name} {_NUMBER}", text):
            return {name: float(found[1])}
    if found := re.fullmatch(r"Epoch time: ([\d.]+) s", text):
        return {"seconds": float(found[1])}
    if text.startswith("Pseudo dice"):
        dices = [float(value) for value in re.findall(rf"(?<![\w.]){_NUMBER}(?![\w.(])", text)]
        known = [dice for dice in dices if not math.isnan(dice)]
        return {"dice": sum(known) / len(known)} if known else {}
    if text.startswith("unlabeled {"):
        numbers = re.sub(r"(?<=[ \[-])(nan|inf)(?=[,}\]])", lambda m: {"nan": "NaN", "inf": "Infinity"}[m[0]], text)
        try:
            curves = json.loads(numbers.removeprefix("unlabeled ").replace("'", '"'))
        except ValueError:  # cut off by a full disk
            return {}
        return {f"unlabeled/{name}": value for name, value in curves.items() if isinstance(value, float)}
    return {}


@dataclass(frozen=True)
class TrainedRun:
    """One trained fold of one trainer.

    Attributes:
        hours: of the training's epochs, times its processes, and of the runs that made its pseudo-labels.
        made_by: the record of its pseudo-labels, if it has any.
        peak_memory: bytes; None where it was not recorded (nnU-Net alone records none).
        device: on which it was trained.
        training: what ``training.json`` says; {} where nothing was recorded (nnU-Net alone records no cases).
        constants: of the method.
        warnings: what is not known of its costs.
    """

    trainer: str
    fold: int | str
    folder: Path
    log: TrainingLog
    hours: float
    made_by: dict
    peak_memory: int | None
    device: str
    training: dict
    constants: dict
    warnings: tuple[str, ...]


def train_command(folder: Path, option: str = "") -> str:
    """nnU-Net's command for the run in ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIG/fold_K``."""
    trainer, plans, configuration = convert_identifier_to_trainer_plans_config(folder.parent.name)
    fold = folder.name.removeprefix("fold_")
    return (
        f"nnUNetv2_train {folder.parent.parent.name} {configuration} {fold} -tr {trainer} -p {plans} {option}".rstrip()
    )


def read_run(model_folder: Path, fold: int | str) -> TrainedRun:
    """The run in ``TRAINER__PLANS__CONFIG/fold_K``.

    Raises:
        DatasetError: it is not finished; names what is missing and the command that makes it.
    """
    folder = model_folder / f"fold_{fold}"
    if not (folder / FINAL).exists():
        option = "--c" if (folder / "checkpoint_latest.pth").exists() else ""
        raise DatasetError([f"{folder / FINAL} is missing: {train_command(folder, option)}"])
    log, resources, debug = TrainingLog.read(folder), read_resources(folder), _json(folder / "debug.json")
    warnings = []
    if "processes" not in resources and debug.get("is_ddp") == "True":
        warnings.append(f"{folder} was trained on several GPUs, nobody knows how many; its hours count one.")
    hours = log.hours * resources.get("processes", 1)
    if made_by := _json(folder / RECORD):
        teacher = _teacher(folder, made_by)
        if teacher is None:
            warnings.append(
                f"The model that made the pseudo-labels of {folder} is not there any more; its hours are not counted."
            )
        else:
            hours += teacher.hours
            warnings += teacher.warnings
    return TrainedRun(
        trainer=convert_identifier_to_trainer_plans_config(model_folder.name)[0],
        fold=fold,
        folder=folder,
        log=log,
        hours=hours,
        made_by=made_by,
        peak_memory=resources.get("peak_memory_bytes"),
        device=resources.get("device") or debug.get("gpu_name") or debug.get("device") or "not recorded",
        training=read_training(folder),
        constants=read_method(folder) or ({"threshold": made_by["threshold"]} if made_by else {}),
        warnings=tuple(warnings),
    )


def teacher_folder(student: Path, record: dict) -> Path:
    """The fold that made the pseudo-labels of a run, by their record."""
    identifier = convert_trainer_plans_config_to_identifier(record["trainer"], record["plans"], record["configuration"])
    return student.parent.parent / identifier / f"fold_{record['fold']}"


def _teacher(student: Path, record: dict) -> TrainedRun | None:
    """The run whose checkpoint made the pseudo-labels, None unless it is still the same one."""
    folder = teacher_folder(student, record)
    checkpoint = folder / record["checkpoint"]
    if folder == student or not checkpoint.exists() or sha256_of(checkpoint) != record["model"]:
        return None
    try:
        return read_run(folder.parent, record["fold"])
    except DatasetError:
        return None


def validation_cases(runs: Sequence[TrainedRun], preprocessed_folder: Path) -> dict[int | str, list[str]]:
    """The validation cases of each fold, after making sure that all runs learned from the same labeled cases.

    nnU-Net notes only how many cases there were; such a run's cases are those of today's split if the numbers are
    right.

    Raises:
        DatasetError: names the runs and the cases that differ.
    """
    file = preprocessed_folder / SPLITS
    splits = load_json(str(file)) if file.exists() else []
    problems = []
    first: dict[int | str, tuple[TrainedRun, list[set[str]]]] = {}
    for run in runs:
        known = run.training
        if not known and run.fold != "all" and int(run.fold) < len(splits):
            known = {"labeled": splits[int(run.fold)]["train"], "validation": splits[int(run.fold)]["val"]}
        if not known:
            continue
        parts = [set(known["labeled"]), set(known["validation"])]
        numbers = len(parts[0]), len(parts[1])
        if run.log.split not in (None, numbers):
            problems.append(
                f"{run.folder} was trained on {run.log.split[0]} labeled cases and held out {run.log.split[1]}, but "
                f"{file} has {numbers[0]} and {numbers[1]} for fold {run.fold}: it has changed since. Train this run "
                "again."
            )
            continue
        other, others = first.setdefault(run.fold, (run, parts))
        for what, part, of_other in zip(("trained on", "validates"), parts, others, strict=True):
            if part != of_other:
                problems.append(
                    f"{run.folder} {what} other labeled cases than {other.folder}; only one of them has "
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
