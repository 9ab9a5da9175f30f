"""What a finished training left in its folder: its log, its validation, its checkpoint, its costs."""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.preprocessing.listing import DatasetError
from nnunetv2_crossmatch.preprocessing.splits import SPLITS
from nnunetv2_crossmatch.pseudo_labels.record import RECORD
from nnunetv2_crossmatch.trainers.resources import RESOURCES
from nnunetv2_crossmatch.trainers.unlabeled_cases import CASES

FINAL = "checkpoint_final.pth"
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: (.*)")
_NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)"


@dataclass
class TrainingLog:
    """nnU-Net's ``training_log_*.txt`` of one fold, all of them; an epoch that was trained twice counts once.

    Attributes:
        epochs: of the last training that began at epoch 0, each with its ``train_loss``, ``val_loss``, ``dice`` (mean
            pseudo Dice), ``seconds`` and, named ``unlabeled/...``, the curves of the unlabelled part.
        training, validation: numbers of labelled cases; None for fold all.
        unlabeled: number of unlabelled cases; None where none are used.
        validated: whether the last thing done was a validation.
    """

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    training: int | None = None
    validation: int | None = None
    unlabeled: int | None = None
    validated: bool = False

    @classmethod
    def read(cls, folder: Path) -> "TrainingLog":
        log, epoch = cls(), 0
        for file in sorted(folder.glob("training_log_*.txt")):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if not (message := _LINE.match(line)):
                    continue
                text = message[1].strip()
                if found := re.fullmatch(r"Epoch (\d+)", text):
                    epoch = int(found[1])
                    log.validated = False
                    if epoch == 0:
                        log.epochs.clear()
                    log.epochs[epoch] = {}
                elif epoch in log.epochs:
                    log.epochs[epoch] |= _values(text)
                if found := re.fullmatch(r"This split has (\d+) training and (\d+) validation cases\.", text):
                    log.training, log.validation = int(found[1]), int(found[2])
                elif found := re.match(r"(\d+) unlabelled cases; ", text):
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
        curves = json.loads(text.removeprefix("unlabeled ").replace("'", '"').replace("nan", "NaN"))
        return {f"unlabeled/{name}": value for name, value in curves.items() if isinstance(value, float)}
    return {}


@dataclass(frozen=True)
class Run:
    """One trained fold of one trainer.

    Attributes:
        hours: GPU hours of the training's epochs, times its processes, and of the runs that made its pseudo-labels.
        made_by: the runs that made its pseudo-labels.
        peak_memory: bytes; None where it was not recorded (nnU-Net alone records none).
        device: on which it was trained, as far as recorded.
        labeled: the labelled cases it learned from; None where that was not recorded.
        unlabeled: hash of the list of unlabelled cases, None as above.
        constants: of the method.
    """

    trainer: str
    fold: int | str
    folder: Path
    log: TrainingLog
    hours: float
    made_by: tuple["Run", ...]
    peak_memory: int | None
    device: str | None
    labeled: list[str] | None
    unlabeled: str | None
    constants: dict


def read_run(model_folder: Path, fold: int | str) -> Run:
    """The run in ``TRAINER__PLANS__CONFIG/fold_K``.

    Raises:
        DatasetError: it is not finished; names what is missing and the command that makes it.
    """
    folder = model_folder / f"fold_{fold}"
    trainer, plans, configuration = model_folder.name.split("__")
    if not (folder / FINAL).exists():
        go_on = " --c" if (folder / "checkpoint_latest.pth").exists() else ""
        raise DatasetError(
            [
                f"{folder / FINAL} is missing: nnUNetv2_train {model_folder.parent.name} {configuration} {fold} "
                f"-tr {trainer} -p {plans}{go_on}"
            ]
        )
    log = TrainingLog.read(folder)
    resources, cases = _json(folder / RESOURCES), _json(folder / CASES)
    made_by: tuple[Run, ...] = ()
    if teacher := _json(folder / RECORD):
        name = "__".join(teacher[key] for key in ("trainer", "plans", "configuration"))
        made_by = (read_run(model_folder.parent / name, teacher["fold"]),)
    return Run(
        trainer,
        fold,
        folder,
        log,
        log.hours * resources.get("processes", 1) + sum(run.hours for run in made_by),
        made_by,
        resources.get("peak_memory_bytes"),
        resources.get("device"),
        cases.get("labeled"),
        cases.get("unlabeled_sha256"),
        _json(folder / "method.json"),
    )


def check_comparable(runs: list[Run], preprocessed_folder: Path) -> None:
    """Each fold has to have learned from the same labelled cases in every run.

    nnU-Net notes only how many there were; such a run's cases are those of today's split if the number is right.

    Raises:
        DatasetError: names the runs and the cases that differ.
    """
    file = preprocessed_folder / SPLITS
    splits = load_json(str(file)) if file.exists() else []
    problems = []
    first: dict[int | str, tuple[Run, set[str]]] = {}
    for run in runs:
        in_split = splits[int(run.fold)]["train"] if run.fold != "all" and int(run.fold) < len(splits) else []
        cases = set(in_split if run.labeled is None else run.labeled)
        if run.log.training not in (None, len(cases)):
            problems.append(
                f"{run.folder} was trained on {run.log.training} labelled cases, but {file} has {len(cases)} for fold "
                f"{run.fold}: it has changed since. Train this run again."
            )
            continue
        other, others = first.setdefault(run.fold, (run, cases))
        if cases and others and cases != others:
            problems.append(
                f"{run.folder} and {other.folder} were trained on different labelled cases; only one of them has "
                f"{', '.join(sorted(cases ^ others))}. Train both with the same {file}."
            )
    if problems:
        raise DatasetError(problems)


def _json(file: Path) -> dict:
    return load_json(str(file)) if file.exists() else {}
