"""Rounds of self-training: their order, what is not done again, and the command."""

import csv
import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.self_training.predict import Written
from nnunetv2_crossmatch.self_training.record import Record, model_hash, pseudo_label_folder
from nnunetv2_crossmatch.sweep import self_train
from nnunetv2_crossmatch.sweep.rounds_table import as_text
from nnunetv2_crossmatch.sweep.self_train import Constants, SelfTraining
from nnunetv2_crossmatch.trainers import launch
from tests.conftest import DATASET

STUDENT = "nnUNetTrainerPseudoLabel_smoke"


class Fake:
    """Labels and trains in no time; it is killed after ``stop`` steps."""

    def __init__(self, base: Path, monkeypatch):
        self.results, self.raw, self.done, self.stop = base / "results", base / "raw" / DATASET, [], None
        monkeypatch.setattr("nnunetv2_crossmatch.nnunet.run_folder.nnUNet_results", self.results)
        for name in ("write_pseudo_labels", "train_all", "measure_fold"):
            monkeypatch.setattr(self_train, name, getattr(self, name))
        monkeypatch.setattr(self_train, "make_rows", lambda number, run, *_: [{"round": number, "fold": run.fold}])
        monkeypatch.setattr(self_train, "Local", lambda runs, device, gpus, pretrained: pretrained)
        dataset = SimpleNamespace(
            name=DATASET,
            json={"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"},
            require_raw=lambda: self.raw,
        )
        self.planned = SimpleNamespace(dataset=dataset, plans=SimpleNamespace(plans_name="P"), configuration_name="2d")
        self.changed, self.changed_in = {"a": 0.5, "b": 0.1, "c": 0.2}, {}  # of every round, of some

    def of(self, folds=(0, 1), **constants) -> SelfTraining:
        return SelfTraining(self.planned, "nnUNetTrainer", STUDENT, list(folds), Constants(**constants))

    def go(self, rounds=2, stop=None, **options) -> list[str]:
        """What one call of the command did."""
        self.done, self.stop = [], stop
        with suppress(KeyboardInterrupt):
            list(self.of(**options).run(rounds, "cpu", 1))
        return self.done

    def step(self, what: str) -> None:
        if self.stop is not None and len(self.done) == self.stop:
            raise KeyboardInterrupt
        self.done.append(what)

    def make_model(self, run: RunFolder, content="model") -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        run.checkpoint().write_text(f"{run} {content}")
        (run.path / "validation").mkdir(exist_ok=True)
        (run.path / "validation" / "summary.json").touch()
        (run.path / "training_log_2026_1_1_1_1_1.txt").write_text("2026-01-01 00:00:00.000000: Validation complete\n")

    def write_pseudo_labels(self, planned, trainer, folds, threshold, checkpoint, device, num_processes):
        for fold in folds:
            run = RunFolder.of(DATASET, trainer, "P", "2d", fold)
            folder = pseudo_label_folder(self.raw, run)
            self.step(f"{Round.parse(trainer).number if Round.parse(trainer) else 0} labels {fold}")
            origin = dict.fromkeys(("plans", "configuration", "threshold", "labels", "validation", "versions", "image"))
            of_model = {
                "trainer": trainer,
                "fold": fold,
                "checkpoint": checkpoint,
                "model": model_hash([run.checkpoint()]),
            }
            of_file = {"file": "sha", "replaced": None, "confident": {}}
            Record(folder, {case: {**origin, **of_model, **of_file} for case in self.changed}).write()
            yield fold, Written(folder)

    def train_all(self, runs, pretrained):
        self.pretrained = pretrained
        for run in runs:
            round_ = Round.parse(run.trainer)
            self.step(f"{round_.number} trains {run.fold}")
            record = {"plans": "P", "configuration": "2d", "fold": run.fold, "checkpoint": "checkpoint_final.pth"}
            teacher = RunFolder.of(DATASET, round_.before.trainer, "P", "2d", run.fold)
            record |= {"trainer": teacher.trainer, "model": model_hash([teacher.checkpoint()])}
            self.make_model(run)
            (run.path / "pseudo_labels.json").write_text(json.dumps(record))

    def measure_fold(self, planned, folder, before, known, num_processes):
        round_ = Round.parse(folder.parent.name.split("__")[0])
        changed = self.changed_in.get(round_.number, self.changed) if round_ else dict.fromkeys(self.changed)
        return {case: {"changed": value} for case, value in changed.items()}


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    fake = Fake(tmp_path, monkeypatch)
    for fold in (0, 1):
        fake.make_model(fake.of().of(0, fold))
    return fake


ALL = [
    f"{number} {does} {fold}"
    for number, does in ((0, "labels"), (1, "trains"), (1, "labels"), (2, "trains"), (2, "labels"))
    for fold in (0, 1)
]


def test_label_train_label_train_label(fake):
    assert fake.go() == ALL
    rows = list(csv.DictReader((fake.of().folder / "rounds.csv").open()))
    assert [(row["round"], row["fold"]) for row in rows] == [(str(n), str(f)) for n in range(3) for f in (0, 1)]
    assert fake.go(rounds=3) == [
        *ALL[-2:],
        "3 trains 0",
        "3 trains 1",
        "3 labels 0",
        "3 labels 1",
    ]  # labels: asked, not made


@pytest.mark.parametrize("stop", range(1, 10))
def test_killed_after_any_step_it_goes_on_with_the_next(fake, stop):
    first, second = fake.go(stop=stop), fake.go()
    assert first == ALL[:stop]
    assert [step for step in second if step not in first] == ALL[stop:]
    for step in (step for step in second if step in first):  # asked for again, and the labeling knows what is there
        number, does, fold = step.split()
        assert does == "labels" and f"{int(number) + 1} trains {fold}" not in first


def test_labels_that_changed_most_are_left_out_from_the_second_labels_on(fake):
    fake.go(drop=0.4)
    left_out = [list(Record.read(fake.of()._labels(number, 0)).left_out) for number in range(3)]
    assert left_out == [[], ["a"], ["a"]]
    fake.changed = {"a": 0.1, "b": 0.5, "c": 0.2}
    fake.go(drop=0.4)  # round 2 has been trained
    assert list(Record.read(fake.of()._labels(1, 0)).left_out) == ["a"]


def test_the_rounds_before_count_as_well(fake):
    fake.changed_in = {2: {"a": 0.1, "b": 0.3, "c": 0.2}}
    fake.go(rounds=2, drop=0.4)
    assert list(Record.read(fake.of()._labels(2, 0)).left_out) == ["a"]  # 0.3 on average, b 0.2


def test_begins_with_the_weights_of_the_labeling_model_if_told_so(fake):
    fake.go(rounds=1)
    assert fake.pretrained == {}
    for folder in (fake.results / DATASET).glob(f"{STUDENT}*"):
        folder.rename(folder.with_name("away"))
    fake.go(from_teacher=True)
    of = fake.of().of
    assert fake.pretrained == {of(2, fold): of(1, fold).checkpoint() for fold in (0, 1)}


def test_other_constants_than_those_of_the_rounds_that_are_there_are_refused(fake):
    fake.go(rounds=1, stop=2)
    fake.go(rounds=1, stop=2, threshold=0.8)  # nothing was trained on them yet
    fake.go(rounds=1, threshold=0.8)
    with pytest.raises(ValueError, match=r"were made otherwise: threshold 0.8, now 0.9\. Go on as they began"):
        fake.go(threshold=0.9)


def test_two_self_trainings_of_a_teacher_do_not_take_each_others_labels(fake):
    other = SelfTraining(fake.planned, "nnUNetTrainer", "nnUNetTrainerPseudoLabel_50epochs", [0, 1], Constants(0.5))
    fake.go(rounds=1)
    first = fake.of().of(1, 1)
    shutil.rmtree(first.path / "validation")
    first_log = next(first.path.glob("training_log*"))
    log = first_log.read_text()
    first_log.write_text("")
    fake.done = []
    with pytest.raises(ValueError, match=rf"{STUDENT} still trains on the labels that nnUNetTrainer made with --thr"):
        list(other.run(1, "cpu", 1))
    assert fake.done == []
    (first.path / "validation").mkdir()
    (first.path / "validation" / "summary.json").touch()
    first_log.write_text(log)
    list(other.run(1, "cpu", 1))
    assert fake.done[:2] == ["0 labels 0", "0 labels 1"]


def test_a_teacher_that_was_trained_again_is_refused(fake):
    fake.go(rounds=1)
    fake.make_model(fake.of().of(0, 1), "trained again")
    with pytest.raises(
        ValueError, match="round1_of_nnUNetTrainer fold 1 learned from labels of nnUNetTrainer, which was"
    ):
        fake.go()
    assert fake.go(folds=[0], rounds=1) == ["1 labels 0"]
    fake.of().of(0, 1).checkpoint().unlink()  # to save space
    assert fake.go(rounds=1) == ["1 labels 0", "1 labels 1"]


def test_table_over_the_folds():
    row = {"round": 1, "fold": 0, "scans": 4, "left_out": 1, "changed": 0.5, "class": "liver", "agreement": 0.5}
    row |= {"sure": None, "volume": 1.5, "dice": 0.25, "validation_dice": None, "unit": "ml", "hours": 1.0}
    rows = [row, {**row, "class": "spleen"}, {**row, "fold": 1, "agreement": 1.0, "hours": 2.0}]
    lines = [line.split() for line in as_text(rows)]
    assert "volume [ml]" in as_text(rows)[0]
    assert lines[1] == ["1", "8", "2", "50.0", "liver", "75.0", "-", "1.5", "25.0", "-", "3"]
    assert lines[2] == ["spleen", "50.0", "-", "1.5", "25.0", "-"]


def test_weights_are_given_only_to_a_training_that_begins(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(launch, "run_training", lambda *arguments, **_: given.append(arguments[-1]))
    run = RunFolder.of(DATASET, "T", "P", "2d", 0, tmp_path)
    monkeypatch.setattr(launch, "get_output_folder", lambda *_: str(run.path))
    launch.train(run, "cpu", 1, tmp_path / "teacher.pth")
    run.path.mkdir(parents=True)
    run.checkpoint("checkpoint_latest.pth").touch()
    launch.train(run, "cpu", 1, tmp_path / "teacher.pth")
    assert given == [str(tmp_path / "teacher.pth"), None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", "nnUNetTrainer"], "--student nnUNetTrainer: nnUNetTrainerPseudoLabel, or with a length"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        (["--drop", "1"], "--drop 1.0: a share"),
    ],
)
def test_wrong_options(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["self-train", "-d", "901", "-c", "2d", *options])
    assert message in capsys.readouterr().err
