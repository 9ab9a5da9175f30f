import json
from pathlib import Path

import pytest

from nnunetv2_crossmatch.comparison.runs import TrainingLog, check_comparable, read_run
from nnunetv2_crossmatch.preprocessing.listing import DatasetError

STAMP = "2026-01-01 00:00:00.000000: "


def write_log(folder: Path, name: str, *lines: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"training_log_{name}.txt").write_text(
        "\n\nnot stamped: Epoch 7\n" + "".join(f"{STAMP}{x} \n" for x in lines)
    )


def epoch(number: int, loss: float, seconds: float, *more: str) -> list[str]:
    dice = f"Pseudo dice [np.float32({loss}), np.float64(nan), {3 * loss}]"
    return [f"Epoch {number}", f"train_loss {loss}", f"val_loss -{loss}", dice, f"Epoch time: {seconds} s", *more]


def finished(model: Path, fold: int, *lines: str, **files: dict) -> Path:
    folder = model / f"fold_{fold}"
    write_log(folder, "1", *lines, "Validation complete")
    (folder / "checkpoint_final.pth").touch()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_epochs_that_were_trained_twice_count_once_and_a_new_beginning_forgets_the_old_one(tmp_path):
    write_log(tmp_path, "1", *epoch(0, 0.9, 100), *epoch(1, 0.8, 100), *epoch(2, 0.7, 100))
    curve = "unlabeled {'pseudo_label_dice': 0.5, 'kept_share': [0.1, nan], 'loss_a': nan}"
    write_log(
        tmp_path, "2", "This split has 4 training and 1 validation cases.", *epoch(0, 0.25, 10), *epoch(1, 0.5, 20)
    )
    write_log(tmp_path, "3", "24 unlabelled cases; 0 more", *epoch(1, 1e-05, 36, curve), "Training done.")
    log = TrainingLog.read(tmp_path)
    assert log.hours == pytest.approx(46 / 3600)
    assert log.curve("train_loss") == ([0, 1], [0.25, 1e-05])
    assert log.curve("dice")[1] == pytest.approx([0.5, 2e-05])
    assert log.curve("unlabeled/pseudo_label_dice") == ([1], [0.5])
    assert (log.training, log.validation, log.unlabeled, log.validated) == (4, 1, 24, False)
    write_log(tmp_path, "4", "Validation complete")
    assert TrainingLog.read(tmp_path).validated


def test_hours_count_every_process_and_the_runs_that_made_the_pseudo_labels(tmp_path):
    finished(tmp_path / "D" / "teacher__P__2d", 0, *epoch(0, 0.5, 3600))
    made_with = {"trainer": "teacher", "plans": "P", "configuration": "2d", "fold": 0}
    resources = {"peak_memory_bytes": 5, "device": "cpu", "processes": 2}
    finished(tmp_path / "D" / "student__P__2d", 0, *epoch(0, 0.5, 1800), pseudo_labels=made_with, resources=resources)
    run = read_run(tmp_path / "D" / "student__P__2d", 0)
    assert (run.hours, run.peak_memory, run.device) == (2.0, 5, "cpu")
    assert [teacher.trainer for teacher in run.made_by] == ["teacher"]


def test_an_unfinished_run_is_named_with_the_command_that_ends_it(tmp_path):
    model = tmp_path / "Dataset001_A" / "nnUNetTrainerX__P__2d"
    with pytest.raises(DatasetError, match=r"fold_1.*nnUNetv2_train Dataset001_A 2d 1 -tr nnUNetTrainerX -p P$"):
        read_run(model, 1)
    (model / "fold_1").mkdir(parents=True)
    (model / "fold_1" / "checkpoint_latest.pth").touch()
    with pytest.raises(DatasetError, match="-p P --c$"):
        read_run(model, 1)


def test_runs_of_other_labelled_cases_are_refused(tmp_path):
    count = "This split has 2 training and 1 validation cases."
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))
    stock = finished(tmp_path / "D" / "stock__P__2d", 0, count).parent
    ours = finished(tmp_path / "D" / "ours__P__2d", 0, count, cases={"labeled": ["b", "a"]}).parent
    other = finished(tmp_path / "D" / "other__P__2d", 0, count, cases={"labeled": ["a", "z"]}).parent
    check_comparable([read_run(model, 0) for model in (stock, ours)], tmp_path)
    with pytest.raises(DatasetError, match=r"other__P__2d.*different labelled cases; only one of them has b, z"):
        check_comparable([read_run(model, 0) for model in (stock, ours, other)], tmp_path)
    splits.write_text(json.dumps([{"train": ["a", "b", "c"], "val": []}]))
    with pytest.raises(DatasetError, match=r"stock__P__2d.*on 2 labelled cases, but .* has 3 for fold 0"):
        check_comparable([read_run(model, 0) for model in (stock, ours)], tmp_path)
