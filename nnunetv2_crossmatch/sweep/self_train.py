"""Self-training in rounds: the models label, nnU-Net trains on the labels, its models label again."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nnunetv2_crossmatch.comparison.runs import made_with, teacher_folders
from nnunetv2_crossmatch.nnunet.labels import read_labels
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.self_training.predict import Written, write_pseudo_labels
from nnunetv2_crossmatch.self_training.record import Origin, Record, model_hash, pseudo_label_folder
from nnunetv2_crossmatch.self_training.rounds import (
    carry_corrections,
    leave_out,
    measure_fold,
    most_changed,
)
from nnunetv2_crossmatch.sweep.clusters import Local
from nnunetv2_crossmatch.sweep.matrix import train_all
from nnunetv2_crossmatch.sweep.rounds_table import Row, as_csv, make_rows
from nnunetv2_crossmatch.utilities.files import read_json, write_json, write_text

ROUNDS, TABLE, CONSTANTS = "rounds.json", "rounds.csv", "constants.json"


@dataclass(frozen=True)
class Constants:
    """What must not change between the rounds of one self-training.

    Attributes:
        threshold: voxels that are less probable are ignored. 0.9: the pseudo-label command's.
        drop: share of the scans, those whose labels change most from round to round, that no round after them trains
            on. 0.038: FLARE22's winner, https://doi.org/10.1007/978-3-031-23911-3_16.
        from_teacher: whether a training begins with the weights of the model that labeled, the segmentation layers
            excepted. False: from nothing, as nnUNetTrainerPseudoLabel always did; not compared yet.
        checkpoint: that labels.
    """

    threshold: float = 0.9
    drop: float = 0.038
    from_teacher: bool = False
    checkpoint: str = "checkpoint_final.pth"


@dataclass(frozen=True)
class SelfTraining:
    """A teacher, its students and the folds that they are trained on.

    student: nnUNetTrainerPseudoLabel, of whatever length; every round has a trainer of its own name.
    """

    planned: Planned
    teacher: str
    student: str
    folds: list[int | str]
    constants: Constants

    def run(self, rounds: int, device: str, num_processes: int) -> Iterator[tuple[int, int | str, Written]]:
        """Label, then train and label ``rounds`` times. What is done is not done again, whatever ended it before.

        Yields:
            Round, fold and what was labeled, as it is done; the rest is in :attr:`folder`.

        Raises:
            ValueError: constants other than those of the rounds that are there, a model that was trained again after
                it had labeled; and see :func:`write_pseudo_labels`.
            KeyboardInterrupt, RuntimeError: see :func:`train_all`.
        """
        self._check()
        for number in range(rounds + 1):
            if number:
                self._train(number, device)
            yield from self._label(number, device, num_processes)
            self._measure(number, num_processes)

    @property
    def folder(self) -> Path:
        """``nnUNet_results/DATASET/self_training/STUDENT_of_TEACHER__PLANS__CONFIG``."""
        of_teacher = self.of(0, "all").model_folder
        return of_teacher.parent / "self_training" / f"{self.student}_of_{of_teacher.name}"

    def of(self, number: int, fold: int | str) -> RunFolder:
        """The training of a round; of the teacher in round 0."""
        planned = self.planned
        trainer = Round(self.student, number, self.teacher).trainer
        return RunFolder.of(planned.dataset.name, trainer, planned.plans.plans_name, planned.configuration_name, fold)

    def rows(self) -> list[Row]:
        """Of each round, fold and class that was ever measured, see :func:`make_rows`."""
        return self._read()["rows"]

    def _labels(self, number: int, fold: int | str) -> Path:
        return pseudo_label_folder(self.planned.dataset.require_raw(), self.of(number, fold))

    def _has_begun(self, number: int, fold: int | str) -> bool:
        """Then the labels that it trains on stay as they are."""
        return bool(self.of(number, fold).checkpoints)

    def _check(self) -> None:
        problems = []
        trained = sorted(self.folder.parent.parent.glob(f"{self.student}_round*_of_{self.of(0, 0).model_folder.name}"))
        runs = [run for model in trained for run in map(RunFolder, sorted(model.glob("fold_*"))) if run.checkpoints]
        for run in (run for run in runs if run.fold in self.folds):
            if not (made_by := made_with(run)):  # somebody removed it
                continue
            checkpoints = [model.checkpoint(made_by["checkpoint"]) for model in teacher_folders(run, made_by)]
            if all(map(Path.exists, checkpoints)) and model_hash(checkpoints) != made_by["model"]:
                problems.append(
                    f"{run} learned from labels of {made_by['trainer']}, which was trained again since. Move "
                    f"{run.path} away to train it again, and what later rounds have of it."
                )
        problems += self._others()
        if problems:
            raise ValueError("\n".join(("", *problems)))
        file, now = self.folder / CONSTANTS, asdict(self.constants)
        before = read_json(file) if file.exists() else now
        if runs and before != now:
            changed = ", ".join(
                f"{name} {value}, now {now[name]}" for name, value in before.items() if value != now[name]
            )
            raise ValueError(
                f"The rounds that are there were made otherwise: {changed}. Go on as they began; for another "
                f"self-training give --student another length, or move {trained[0].parent}/{self.student}_round* away."
            )
        write_json(now, file)

    def _others(self) -> list[str]:
        """Self-trainings by other students whose first round still needs the teacher's labels as they are."""
        problems = []
        for file in sorted(self.folder.parent.glob(f"*_of_{self.of(0, 0).model_folder.name}/{CONSTANTS}")):
            student, other = file.parent.name.partition("_of_")[0], Constants(**read_json(file))
            if (other.threshold, other.checkpoint) == (self.constants.threshold, self.constants.checkpoint):
                continue
            first = SelfTraining(self.planned, self.teacher, student, self.folds, other)
            begun = [run for fold in self.folds if (run := first.of(1, fold)).path.is_dir()]
            if student != self.student and not all(run.is_done for run in begun):
                problems.append(
                    f"{student} still trains on the labels that {self.teacher} made with --threshold "
                    f"{other.threshold:g} and {other.checkpoint}, and this would replace them. Finish its first round, "
                    f"or move {first.of(1, 0).model_folder} away."
                )
        return problems

    def _train(self, number: int, device: str) -> None:
        runs = [run for fold in self.folds if not (run := self.of(number, fold)).is_done]
        if not runs:
            return
        pretrained = {run: self._labeler(number - 1, run.fold) for run in runs} if self.constants.from_teacher else {}
        train_all(runs, Local(runs, device, 1, pretrained))

    def _labeler(self, number: int, fold: int | str) -> Path:
        """The checkpoint of a model that labeled, the first if several did."""
        return self._labelers(number, fold)[0].checkpoint(self.constants.checkpoint)

    def _labelers(self, number: int, fold: int | str) -> list[RunFolder]:
        """The models that labeled for a fold; a correction that was carried along has an older one's record."""
        run = self.of(number, fold)
        origins = map(Origin.of, Record.read(self._labels(number, fold)).cases.values())
        folds = next((origin.folds for origin in origins if origin.trainer == run.trainer), [fold])
        return [RunFolder(run.model_folder / f"fold_{of_model}") for of_model in folds]

    def _label(self, number: int, device: str, num_processes: int) -> Iterator[tuple[int, int | str, Written]]:
        folds = [fold for fold in self.folds if not self._has_begun(number + 1, fold)]
        if not folds:
            return
        if number:
            for fold in folds:
                before, folder = (self._labels(n, fold) for n in (number - 1, number))
                carry_corrections(before, folder, self.planned.dataset.json["file_ending"])
        c = self.constants
        on = torch.device(device)
        what = self.planned, self.of(number, folds[0]).trainer, folds
        for fold, written in write_pseudo_labels(*what, c.threshold, c.checkpoint, on, num_processes):
            yield number, fold, written
        if on.type == "cuda":
            torch.cuda.empty_cache()  # the trainings are other processes

    def _measure(self, number: int, num_processes: int) -> None:
        content, classes = self._read(), read_labels(self.planned.dataset.json).classes
        for fold in self.folds:
            folder = self._labels(number, fold)
            before = self._labels(number - 1, fold) if number else None
            known = [content["scans"].get(str(n), {}).get(str(fold), {}) for n in range(number + 1)]
            figures = measure_fold(self.planned, folder, before, known[number], num_processes)
            content["scans"].setdefault(str(number), {})[str(fold)] = figures
            if number and not self._has_begun(number + 1, fold):
                leave_out(folder, most_changed([*known[1:number], figures], self.constants.drop))
            left_out = len(Record.read(folder).left_out)
            what = number, self.of(number, fold), self._labelers(number, fold), figures, left_out, classes
            rows = [row for row in content["rows"] if (row["round"], row["fold"]) != (number, fold)]
            content["rows"] = sorted(rows + make_rows(*what), key=lambda row: (row["round"], str(row["fold"])))
        write_json(content, self.folder / ROUNDS)
        write_text(as_csv(content["rows"]), self.folder / TABLE)

    def _read(self) -> dict[str, Any]:
        file = self.folder / ROUNDS
        return read_json(file) if file.exists() else {"rows": [], "scans": {}}
