import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest

from nnunetv2_crossmatch.comparison.report import _training_commands, costs
from nnunetv2_crossmatch.comparison.runs import TrainedRun, read_run, validation_cases
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.self_training.names import Round
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.comparison.conftest import finished
from tests.conftest import ON_DEVICE
from tests.nnunet.conftest import epoch


def test_hours_count_every_process_and_the_runs_that_made_the_pseudo_labels(tmp_path):
    teacher = finished(tmp_path / "D" / "teacher__P__2d", 0, *epoch(0, 0.5, 3600)) / "checkpoint_final.pth"
    made_with = {"trainer": "teacher", "plans": "P", "configuration": "2d", "fold": 0, "threshold": 0.9}
    made_with |= {"checkpoint": teacher.name, "model": hashlib.sha256(teacher.read_bytes()).hexdigest()}
    resources = {"peak_memory_bytes": 5, "device": "cpu", "processes": 2}
    student = tmp_path / "D" / "student__P__2d"
    folder = finished(student, 0, *epoch(0, 0.5, 1800), pseudo_labels=made_with, resources=resources)
    run = read_run(RunFolder(folder))
    assert (run.hours, run.peak_memory, run.device, run.warnings) == (2.0, 5, "cpu", ())
    teacher.write_text("trained again")
    run = read_run(RunFolder(folder))
    assert run.hours == 1.0 and "its hours are not counted" in run.warnings[0]
    of_itself = {**made_with, "trainer": "student", "model": hashlib.sha256(b"").hexdigest()}
    (folder / "pseudo_labels.json").write_text(json.dumps(of_itself))
    assert "no longer exists" in read_run(RunFolder(folder)).warnings[0]


def test_hours_count_all_folds_that_labeled_together_and_all_rounds_before(tmp_path):
    teachers = [finished(tmp_path / "D" / "T__P__2d", fold, *epoch(0, 0.5, 3600)) for fold in (0, 1)]
    hashes = []
    for folder in teachers:
        (folder / "checkpoint_final.pth").write_text(folder.name)
        hashes.append(hashlib.sha256(folder.name.encode()).hexdigest())
    of_all = {"trainer": "T", "plans": "P", "configuration": "2d", "fold": "all", "folds": [0, 1], "threshold": 0.9}
    of_all |= {"checkpoint": "checkpoint_final.pth", "model": hashlib.sha256("".join(hashes).encode()).hexdigest()}
    first = Round("nnUNetTrainerPseudoLabel", 1, "T")
    folder = finished(tmp_path / "D" / f"{first.trainer}__P__2d", "all", *epoch(0, 0.5, 1800), pseudo_labels=of_all)
    model = hashlib.sha256((folder / "checkpoint_final.pth").read_bytes()).hexdigest()
    of_round = {**of_all, "trainer": first.trainer, "folds": ["all"], "model": model}
    second = tmp_path / "D" / f"{first._replace(number=2).trainer}__P__2d"
    run = read_run(RunFolder(finished(second, "all", *epoch(0, 0.5, 900), pseudo_labels=of_round)))
    assert (run.hours, run.warnings) == (2.75, ())
    assert _training_commands(run.folder) == [
        *(f"nnUNetv2_train D 2d {fold} -tr T -p P" for fold in (0, 1)),
        *(
            f"nnUNetv2_crossmatch self-train -d D -c 2d -p P -f all -tr T --student nnUNetTrainerPseudoLabel "
            f"--rounds {number} --threshold 0.9 -chk checkpoint_final.pth"
            for number in (1, 2)
        ),
    ]


def test_hours_count_the_stock_training_that_was_gone_on_from(tmp_path):
    stock = finished(tmp_path / "D" / "nnUNetTrainer__P__2d", 0, *epoch(0, 0.5, 3600))
    name = "nnUNetTrainerCrossMatchFromStock_250epochs"
    folder = RunFolder(finished(tmp_path / "D" / f"{name}__P__2d", 0, *epoch(0, 0.5, 1800)))
    run = read_run(folder)
    assert (run.hours, run.counts, run.warnings) == (1.5, ("nnUNetTrainer",), ())
    model = SimpleNamespace(trainer=name, runs=[run], hours=run.hours, peak_memory=None)
    assert costs(SimpleNamespace(models=[model]))[0]["hours"] == "1.50 (with nnUNetTrainer)"
    assert _training_commands(folder) == [f"nnUNetv2_train D 2d 0 -tr {tr} -p P" for tr in ("nnUNetTrainer", name)]
    shutil.rmtree(stock)
    run = read_run(folder)
    assert (run.hours, run.counts) == (0.5, ()) and "its hours are not counted" in run.warnings[0]


def test_the_device_of_stock_nnunet_is_that_of_its_debug_json(tmp_path):
    finished(tmp_path / "D" / "stock__P__2d", 0, *epoch(0, 0.5, 3600), debug={"is_ddp": "True", "gpu_name": "A100"})
    run = read_run(RunFolder(tmp_path / "D" / "stock__P__2d" / "fold_0"))
    assert (run.device, run.hours, run.peak_memory) == ("A100", 1.0, None)
    assert "several GPUs" in run.warnings[0]


def test_an_unfinished_run_is_named_with_the_command_that_ends_it(tmp_path):
    model = tmp_path / "Dataset001_A" / "nnUNetTrainerX__P__2d"
    with pytest.raises(DatasetError, match=rf"fold_1.*_train Dataset001_A 2d 1 -tr nnUNetTrainerX -p P{ON_DEVICE}$"):
        read_run(RunFolder(model / "fold_1"))
    (model / "fold_1").mkdir(parents=True)
    (model / "fold_1" / "checkpoint_latest.pth").touch()
    with pytest.raises(DatasetError, match=f"-p P --c{ON_DEVICE}$"):
        read_run(RunFolder(model / "fold_1"))


def test_runs_of_other_labeled_cases_are_refused(tmp_path):
    lines = ["This split has 2 training and 1 validation cases.", *epoch(0, 0.5, 1)]
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))

    def model(name: str, fold: int | str = 0, **training) -> TrainedRun:
        records = {"training": training} if training else {}
        return read_run(RunFolder(finished(tmp_path / "D" / f"{name}__P__2d", fold, *lines, **records)))

    stock, ours = model("stock"), model("ours", labeled=["b", "a"], validation=["c"])
    assert validation_cases([stock, ours], tmp_path) == {0: ["c"]}
    other = model("other", labeled=["a", "z"], validation=["c"])
    with pytest.raises(DatasetError, match=r"other__P__2d/fold_0 trained on other .*; only one of them has b, z"):
        validation_cases([stock, ours, other], tmp_path)
    one, two = (model(f"all{case}", "all", labeled=[case, "y"], validation=["x"]) for case in "pq")
    with pytest.raises(DatasetError, match="only one of them has p, q"):
        validation_cases([model("stock", "all"), one, two], tmp_path)
    splits.write_text(json.dumps([{"train": ["a", "b", "c"], "val": ["d", "e"]}]))
    with pytest.raises(DatasetError, match=r"stock__P__2d.*on 2 labeled cases and held out 1, but .* has 3 and 2"):
        validation_cases([stock, ours], tmp_path)
    splits.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}] * 2))
    with pytest.raises(DatasetError, match="validates c in several folds"):
        validation_cases([model("stock", fold) for fold in (0, 1)], tmp_path)
