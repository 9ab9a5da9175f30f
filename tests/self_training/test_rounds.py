import json
import shutil

import numpy as np
import pytest

from nnunetv2_crossmatch import trainers
from nnunetv2_crossmatch.self_training import rounds
from nnunetv2_crossmatch.self_training.names import Round, is_student
from nnunetv2_crossmatch.self_training.record import RECORD, Record
from nnunetv2_crossmatch.self_training.rounds import carry_corrections, compare_labels, leave_out, most_changed
from nnunetv2_crossmatch.utilities.files import sha256_of

CLASSES = {"liver": (1,), "tumor": (2,), "spleen": (3,)}


def test_figures_of_a_scan():
    predicted = np.array([0, 1, 1, 2, 0, 0]).reshape(1, 2, 3)
    before = np.array([1, 1, 0, 2, 0, 0]).reshape(1, 2, 3)
    truth = np.array([0, 1, 9, 1, 2, 0]).reshape(1, 2, 3)
    sure = np.array([1, 1, 0, 0, 1, 1], bool).reshape(1, 2, 3)
    found = compare_labels(predicted, sure, before, truth, CLASSES, 9, 0.5)
    assert found["changed"] == pytest.approx(2 / 3)  # voxels that differ over foreground voxels now
    assert found["classes"] == {
        "liver": {"sure": 0.5, "volume": 1.0, "agreement": 0.5, "dice": pytest.approx(2 / 3)},  # the 9 does not count
        "tumor": {"sure": 0.0, "volume": 0.5, "agreement": 1.0, "dice": 0.0},
        "spleen": {"sure": None, "volume": 0.0, "agreement": None, "dice": None},
    }
    alone = compare_labels(predicted, sure, None, None, CLASSES, None, 0.5)
    assert (
        alone["changed"] is None and alone["classes"]["liver"]["agreement"] is alone["classes"]["liver"]["dice"] is None
    )


def test_a_region_is_all_of_its_values_and_lost_foreground_is_a_change():
    nothing, before = np.zeros((1, 2, 2), int), np.array([1, 2, 0, 0]).reshape(1, 2, 2)
    whole = {"whole": (1, 2)}
    found = compare_labels(nothing, nothing == 0, before, before, whole, None, 1.0)
    assert found["changed"] == 2 and found["classes"]["whole"]["dice"] == 0
    again = compare_labels(before, before > 0, before, None, whole, None, 1.0)
    assert again["classes"]["whole"] == {"sure": 1.0, "volume": 2.0, "agreement": 1.0, "dice": None}


def changes(**of_scans):
    return {scan: {"changed": value} for scan, value in of_scans.items()}


def test_the_scans_that_changed_most_on_average_over_the_rounds():
    first, second = changes(a=0.9, b=0.1, c=0.0, d=0.2), changes(a=0.1, b=0.8, c=0.0, d=0.9, e=0.3)
    assert most_changed([second], 0.4) == ["b", "d"]
    assert most_changed([first, second], 0.4) == ["a", "d"]  # 0.5, 0.45, 0, 0.55, 0.3
    assert most_changed([first, second], 0.038) == []
    assert most_changed([first, second], 0) == []
    assert most_changed([changes(a=0.0, b=None)], 0.5) == []  # nothing changed


def test_what_is_left_out_for_another_reason_stays_left_out(tmp_path):
    Record(tmp_path, left_out={"a": "bad", "b": rounds.UNSTABLE}).write()
    leave_out(tmp_path, ["a", "c"])
    assert Record.read(tmp_path).left_out == {"a": "bad", "c": rounds.UNSTABLE}
    before = (tmp_path / RECORD).stat().st_mtime_ns
    leave_out(tmp_path, ["a", "c"])
    assert (tmp_path / RECORD).stat().st_mtime_ns == before


@pytest.fixture
def two_rounds(tmp_path):
    """Labels of two rounds; of the first, ``b`` was corrected."""
    folders = [tmp_path / "0", tmp_path / "1"]
    keys = ("trainer", "plans", "configuration", "fold", "checkpoint", "model", "threshold", "labels", "validation")
    for folder in folders:
        record = Record(folder)
        for case in "ab":
            folder.mkdir(exist_ok=True)
            (folder / f"{case}.nii.gz").write_text(f"{case} by the model of {folder.name}")
            sha = sha256_of(folder / f"{case}.nii.gz")
            more = {"versions": {}, "image": [], "confident": {}, "file": sha, "replaced": None}
            record.add(case, {**dict.fromkeys(keys, folder.name), **more})
    (folders[0] / "b.nii.gz").write_text("b by hand")
    return folders


def test_a_correction_stays_in_the_rounds_after(two_rounds):
    before, folder = two_rounds
    assert carry_corrections(before, folder, ".nii.gz") == ["b"]
    assert (folder / "b.nii.gz").read_text() == "b by hand" and "model of 1" in (folder / "a.nii.gz").read_text()
    record = Record.read(folder)
    assert record.is_corrected("b", folder / "b.nii.gz") and not record.is_corrected("a", folder / "a.nii.gz")
    assert not list(folder.glob(".incoming*"))
    (folder / "b.nii.gz").write_text("b by hand, in this round")
    assert carry_corrections(before, folder, ".nii.gz") == []
    assert (folder / "b.nii.gz").read_text() == "b by hand, in this round"
    (folder / "b.nii.gz").unlink()
    (folder / RECORD).unlink()  # before the round has labeled anything
    assert carry_corrections(before, folder, ".nii.gz") == ["b"]


def test_killed_before_the_correction_is_there_it_is_carried_again(two_rounds, monkeypatch):
    before, folder = two_rounds

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(rounds, "copyfile", killed)
        carry_corrections(before, folder, ".nii.gz")
    assert not Record.read(folder).is_corrected("b", folder / "b.nii.gz")
    assert carry_corrections(before, folder, ".nii.gz") == ["b"]
    assert (folder / "b.nii.gz").read_text() == "b by hand"


def test_figures_are_measured_once_and_not_of_corrections(place, tmp_path, monkeypatch):
    place.write((0, 1))
    folders = [place.labels / f"fold_{fold}" for fold in (0, 1)]  # as of two rounds
    hidden = place.raw / "labelsUn"
    hidden.mkdir()
    shutil.copy(place.labels / "fold_0" / "predictions" / "scan1.nii.gz", hidden / "scan1.nii.gz")
    shutil.copy(folders[1] / "scan0.nii.gz", folders[1] / "scan3.nii.gz")  # a correction
    found = rounds.measure_fold(place.planned(), folders[1], folders[0], {}, 1)
    assert list(found) == ["scan0", "scan1", "scan2"]
    of_class = {name: figures for name, figures in found["scan1"]["classes"].items() if figures["volume"]}
    assert of_class and all(figures["dice"] == figures["agreement"] for figures in of_class.values())
    assert all(scan["changed"] > 0 and scan["unit"] == "ml" for scan in found.values())
    assert all(figures["dice"] is None for figures in found["scan0"]["classes"].values())
    assert json.loads(json.dumps(found)) == found

    measured = []
    monkeypatch.setattr(rounds, "measure_scan", lambda label, *_: measured.append(label.name) or {"changed": 0})
    assert rounds.measure_fold(place.planned(), folders[1], folders[0], found, 1) == found and not measured
    (hidden / "scan1.nii.gz").unlink()
    rounds.measure_fold(place.planned(), folders[1], folders[0], found, 1)
    assert measured == ["scan1.nii.gz"]


@pytest.mark.parametrize("student", ["nnUNetTrainerPseudoLabel", "nnUNetTrainerPseudoLabel_25epochs"])
@pytest.mark.parametrize("teacher", ["nnUNetTrainer", "nnUNetTrainerCrossMatch_100epochs", "Mine"])
def test_every_round_has_a_trainer_of_its_own_that_knows_whose_labels_it_takes(student, teacher):
    second = Round(student, 2, teacher)
    assert Round.parse(second.trainer) == second and is_student(student) and not is_student(second.trainer)
    assert Round.parse(student) is Round.parse(teacher) is None
    cls = getattr(trainers, second.trainer)
    assert cls is getattr(trainers, second.trainer) and cls.__name__ == second.trainer
    assert issubclass(cls, getattr(trainers, student)) and cls.teacher == second.before.trainer
    first = getattr(trainers, cls.teacher)
    assert (first.teacher, first.epochs, cls.epochs) == (teacher, *[25 if "25" in student else 1000] * 2)
