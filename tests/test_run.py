"""One command from scans to a model, killed in every step, with commands that write what the real ones write."""

import gzip
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.pipeline import OURS, STOCK, Pipeline, Step
from nnunetv2_crossmatch.preprocessing.content import update_content
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled
from nnunetv2_crossmatch.trainers.claims import is_claimed
from nnunetv2_crossmatch.trainers.estimate import Cost
from tests.conftest import DATASET, ON_DEVICE

RUN = ["run", "-d", "901", "-c", "3d_fullres", "-f", "0", "-np", "1", "-device", "cpu"]
# Called for the first time a command is killed when it has done half of its work.
COMMAND = """#!{python}
import os, shutil, signal, sys
from pathlib import Path

name, arguments, base = Path(sys.argv[0]).name, sys.argv[1:], Path({base!r})
line = " ".join([name, *arguments])
with open(base / "lines", "a") as lines:
    print(line, file=lines)
first = (base / "lines").read_text().splitlines().count(line) == 1

def half():
    if first:
        os.kill(os.getpid(), signal.SIGKILL)

def copy(*patterns):
    saved, target = base / "saved", base / "preprocessed" / "{dataset}"
    for file in (file for pattern in patterns for file in saved.glob(pattern) if file.is_file()):
        (target / file.relative_to(saved)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target / file.relative_to(saved))

def option(name):
    return arguments[arguments.index(name) + 1]

if "plan" in name:
    copy("dataset.json", "nnUNetPlans.json")
    half()
elif "nnUNetv2_preprocess" in name:
    copy("nnUNetPlans_3d_fullres/*")
    half()
    copy("gt_segmentations/*")
elif "train" in name:
    fold = base / "results" / "{dataset}" / (option("-tr") + "__nnUNetPlans__3d_fullres") / "fold_0"
    (fold / "validation").mkdir(parents=True, exist_ok=True)
    if "--val" not in arguments:
        (fold / "checkpoint_best.pth").touch()
        half()
        (fold / "checkpoint_final.pth").touch()
        if "--c" in arguments:
            os.kill(os.getpid(), signal.SIGKILL)
    (fold / "validation" / "summary.json").touch()
    half()
    (fold / "training_log_2026_1_1_1_1_1.txt").write_text("2026-01-01 00:00:00.000000: Validation complete\\n")
elif arguments[0] == "preprocess":
    copy("nnUNetPlans_3d_fullres_unlabeled/*.b2nd")
    half()
    copy("nnUNetPlans_3d_fullres_unlabeled/*")
else:
    if arguments[0] == "export" and Path(option("-o")).exists():
        sys.exit("it exists")
    if arguments[0] != "export" and "-o" in arguments:
        Path(option("-o")).touch()
    half()
    if "-o" in arguments:
        Path(option("-o")).touch()
"""


@pytest.fixture
def fake(dataset, monkeypatch) -> Path:
    """The folder with raw scans, not planned; what planning made of them is saved."""
    found = Dataset.find(DATASET)
    preprocess_unlabeled(Planned(found, found.plans("nnUNetPlans"), "3d_fullres"), 1)
    pipeline = Pipeline(found, "nnUNetPlans", "3d_fullres", [0], "cpu", 1)
    pipeline.note_costs([Cost(STOCK, 1000, (3.6, 3.6), 0, None), Cost(OURS, 250, (3.6, 7.2), 360, None)], "cpu")
    found.preprocessed.rename(dataset / "saved")
    bin_ = dataset / "bin"
    bin_.mkdir()
    for name in ("crossmatch", "plan_and_preprocess", "preprocess", "train", "predict"):
        file = bin_ / f"nnUNetv2_{name}"
        file.write_text(COMMAND.replace("{python}", sys.executable).replace("{base!r}", repr(str(dataset))))
        file.write_text(file.read_text().replace("{dataset}", DATASET))
        file.chmod(0o755)
        (dataset / "other").mkdir(exist_ok=True)
        (dataset / "other" / file.name).symlink_to("/bin/false")  # of another environment
    monkeypatch.setenv("PATH", str(dataset / "other"), prepend=os.pathsep)
    monkeypatch.setattr("nnunetv2_crossmatch.pipeline.sys", SimpleNamespace(executable=str(bin_ / "python")))
    return dataset


def of_fake() -> Pipeline:
    return Pipeline(Dataset.find(DATASET), "nnUNetPlans", "3d_fullres", [0], "cpu", 1)


def lines(base: Path) -> list[str]:
    return (base / "lines").read_text().splitlines()


def until_done(base: Path, capsys: pytest.CaptureFixture) -> None:
    for _ in range(30):
        try:
            return main(RUN)
        except SystemExit:
            assert f"failed, as it says above: {lines(base)[-1]}\n" in capsys.readouterr().err
    raise AssertionError("it does not come to an end")


def test_killed_in_every_step_it_goes_on_there(fake, capsys):
    until_done(fake, capsys)
    done = [line for line in lines(fake) if "crossmatch check" not in line]
    results = fake / "results" / DATASET
    model = f"-d {DATASET} -c 3d_fullres -p nnUNetPlans"
    train = f"nnUNetv2_train {DATASET} 3d_fullres 0 -tr {{}} -p nnUNetPlans {{}}-device cpu"
    compare = f"nnUNetv2_crossmatch compare {model} -tr {STOCK} {OURS} -f 0 -o {results}/comparison__{OURS}__"
    archive = results / f"{OURS}__nnUNetPlans__3d_fullres__fold_0.zip"
    predict = f"nnUNetv2_predict {model} -tr {OURS} -f 0 -i {fake}/raw/{DATASET}/imagesTs -o {results}/{OURS}__"
    assert done == [
        "nnUNetv2_plan_and_preprocess -d 901 -c 3d_fullres -np 1 -npfp 1",
        *["nnUNetv2_preprocess -d 901 -plans_name nnUNetPlans -c 3d_fullres -np 1"] * 2,
        *[f"nnUNetv2_crossmatch preprocess {model} -np 1"] * 2,
        *[train.format(name, option) for name in (STOCK, OURS) for option in ("", *["--c "] * 2, *["--val "] * 2)],
        *[f"{compare}nnUNetPlans__3d_fullres__folds_0.html -np 1"] * 2,
        *[f"{predict}nnUNetPlans__3d_fullres/predicted_fold_0 -npp 1 -nps 1 -device cpu"] * 2,
        *[f"nnUNetv2_crossmatch export {model} -tr {OURS} -f 0 -o {archive}"] * 2,
    ]
    out = capsys.readouterr().out
    next_one = f"nnUNetv2_predict -i IN -o OUT {model} -tr {OURS} -f 0{ON_DEVICE}"
    assert out.endswith(f"export the model: {archive}\nNext: {next_one}\n")
    assert {f"{name} fold 0" for name in (STOCK, OURS)} < json.loads(of_fake().record.read_text())["done"].keys()
    (fake / "lines").unlink()
    main(RUN)
    out = capsys.readouterr().out
    assert not (fake / "lines").exists() and "to do" not in out and "--val" not in out

    final = results / f"{OURS}__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    os.utime(final, (2**32, 2**32))  # trained again
    main([*RUN, "--dry-run"])
    states = [line for line in capsys.readouterr().out.splitlines() if line.endswith(")")]
    assert [line.split("(")[1] for line in states] == ["to do)", *["done)"] * 4, *["to do)"] * 3]

    os.utime(final)
    until_done(fake, capsys)  # export refuses a zip that is there
    assert list(dict.fromkeys(line.split()[1] for line in lines(fake))) == ["check", "compare", "-d", "export"]
    (fake / "lines").unlink()
    main([*RUN, "-np", "2"])
    assert not (fake / "lines").exists(), "another number of workers is no other result"

    stock = results / f"{STOCK}__nnUNetPlans__3d_fullres" / "fold_0" / "checkpoint_final.pth"
    os.utime(stock, (2**32, 2**32))
    main([*RUN, "--dry-run"])
    again = f"train {OURS} fold 0 again, as {STOCK} was trained after it; what is there is kept as earlier_1_fold_0"
    assert f"{again} (to do" in capsys.readouterr().out
    latest = stock.with_name("checkpoint_latest.pth")
    latest.touch()
    os.utime(latest, (2**33, 2**33))
    with pytest.raises(SystemExit):
        main(RUN)
    assert f"{stock}. Move that file away" in capsys.readouterr().err
    latest.unlink()
    os.utime(stock)
    for _ in ("check", "train"):  # killed half-way
        with pytest.raises(SystemExit):
            main(RUN)
    assert (final.parents[1] / "earlier_1_fold_0" / final.name).exists() and not final.exists()

    scan = fake / "raw" / DATASET / "imagesUn" / "scan0_0000.nii.gz"
    mask = fake / "raw" / DATASET / "labelsTr" / "case0.nii.gz"
    for file, numbers in ((scan, [2]), (mask, [1, 2])):
        os.utime(file)
        todo = [number for number, step in enumerate(of_fake().steps()) if not step.done]
        assert [number for number in todo if number in (1, 2)] == numbers


def test_changed_labels_make_what_it_has_trained_stale_and_a_copy_of_them_does_not(fake):
    shutil.copytree(fake / "saved", fake / "preprocessed" / DATASET)
    pipeline = of_fake()
    runs = [RunFolder.of(DATASET, name, "nnUNetPlans", "3d_fullres", 0) for name in (STOCK, OURS)]
    for run in runs:
        run.path.mkdir(parents=True)
        run.checkpoint().touch()

    def stale() -> list[RunFolder]:
        return [step.training for step in pipeline.steps() if step.training and step.stale == step.training.path]

    def correct_a_voxel() -> None:
        voxels = bytearray(gzip.decompress(mask.read_bytes()))
        voxels[-1] = (voxels[-1] + 1) % 3
        mask.write_bytes(gzip.compress(voxels, 0))  # as large as before
        update_content(pipeline.dataset, 1)  # as check does

    mask = fake / "raw" / DATASET / "labelsTr" / "case0.nii.gz"
    correct_a_voxel()
    assert stale() == [], "somebody else's trainings"
    for run in runs:
        pipeline._note(str(run), {"from": pipeline._trained_from(), "checkpoint": run.checkpoint().stat().st_mtime_ns})
    os.utime(mask)
    update_content(pipeline.dataset, 1)
    assert stale() == []
    size = mask.stat().st_size
    correct_a_voxel()
    assert mask.stat().st_size == size
    assert stale() == runs
    assert not any(step.done for step in pipeline.steps() if step.training)

    again = next(step for step in pipeline.steps() if step.stale)
    kept = "what is there is kept as earlier_1_fold_0"
    assert again.what == f"train {runs[0]} again, as the labeled scans have changed; {kept}"
    plans = pipeline.dataset.preprocessed / "nnUNetPlans.json"
    planned = plans.read_text()
    plans.write_text(planned.replace('"ZScoreNormalization"', '"NoNormalization"'))
    assert f"train {runs[0]} again, as the labeled scans and the plans have changed" in pipeline.steps()[3].what
    plans.write_text(planned)

    with pytest.raises(RuntimeError, match="failed"):  # killed half-way
        pipeline.do(again)
    assert (runs[0].path.with_name("earlier_1_fold_0") / "checkpoint_final.pth").exists()
    goes_on = next(step for step in pipeline.steps() if step.training == runs[0])
    assert goes_on.stale is None and " --c " in goes_on.command
    correct_a_voxel()
    assert stale() == runs, "what it goes on with has seen the labels of before"

    while not runs[0].is_trained:
        with pytest.raises(RuntimeError, match="failed"):  # half-way, and in the end
            pipeline.do(goes_on)
    assert stale() == runs
    os.utime(runs[0].checkpoint(), (2**32, 2**32))
    assert stale() == [runs[1]], "the user has trained it again"
    with pytest.raises(RuntimeError, match="failed"):
        pipeline.do(next(step for step in pipeline.steps() if step.training == runs[0]))
    assert stale() == [runs[1]], "a validation is no training"


def test_a_training_is_begun_once_in_a_run(fake, monkeypatch, capsys):
    shutil.copytree(fake / "saved", fake / "preprocessed" / DATASET)
    run = RunFolder.of(DATASET, STOCK, "nnUNetPlans", "3d_fullres", 0)
    begun: list[Step] = []

    def steps(self) -> list[Step]:
        return [Step(f"again, after {len(begun)}", "train", False, run)] if len(begun) < 3 else []

    monkeypatch.setattr(Pipeline, "steps", steps)
    monkeypatch.setattr(Pipeline, "do", lambda self, step: begun.append(step))
    with pytest.raises(SystemExit):
        main(RUN)
    assert len(begun) == 1 and "something is left to do" in capsys.readouterr().err


def test_a_dry_run_says_what_and_how_long_and_does_nothing(fake, capsys):
    shutil.copytree(fake / "saved", fake / "preprocessed" / DATASET)
    (fake / "preprocessed" / DATASET / "splits_final.json").unlink(missing_ok=True)
    before = set(fake.rglob("*"))
    main([*RUN, "--dry-run"])
    out = capsys.readouterr().out.splitlines()
    assert not (fake / "lines").exists() and set(fake.rglob("*")) == before
    assert out[0] == " 1 check all scans (to do)"
    assert out[1] == f"     nnUNetv2_crossmatch check -d {DATASET} -np 1"
    assert out[6] == f" 4 train {STOCK} fold 0 (to do, about 1 h 0 min)"
    assert out[8] == f" 5 train {OURS} fold 0 (to do, about 21 min to 36 min)"
    assert out[-2:] == [
        "Trainings that are not done: about 1 h 21 min to 1 h 36 min.",
        "Next: the same line without --dry-run",
    ]

    log = fake / "results" / DATASET / f"{STOCK}__nnUNetPlans__3d_fullres" / "fold_0"
    log.mkdir(parents=True)
    epoch = "2026-01-01 00:00:00.000000: Epoch 0\n2026-01-01 00:00:00.000000: Epoch time: 60.0 s\n"
    (log / "training_log_2026_1_1_1_1_1.txt").write_text(epoch)
    (log / "debug.json").write_text('{"num_epochs": "11"}')
    main([*RUN, "--dry-run"])
    assert f" 4 train {STOCK} fold 0 (to do, about 11 min)" in capsys.readouterr().out.splitlines(), "from nothing"
    (log / "checkpoint_latest.pth").touch()  # after that epoch
    main([*RUN, "--dry-run"])
    assert f" 4 train {STOCK} fold 0 (to do, about 10 min)" in capsys.readouterr().out.splitlines()

    (log / "checkpoint_final.pth").touch()
    main([*RUN, "--dry-run"])
    assert f" 4 train {STOCK} fold 0 (to do, only its validation)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("folds", [["7"], ["all", "0"]])
def test_folds_that_are_none_are_refused(fake, capsys, folds):
    with pytest.raises(SystemExit):
        main([*RUN, "-f", *folds])
    assert f"-f {folds[0]}: " in capsys.readouterr().err and not (fake / "lines").exists()


def test_without_figures_it_measures_as_soon_as_a_step_can_be_taken(fake, monkeypatch, capsys):
    measured = []

    def measure(planned, trainers, device):
        measured.append(trainers)
        return [Cost(name, 1, (3600.0, 3600.0), 0, None) for name in trainers]

    monkeypatch.setattr("nnunetv2_crossmatch.commands.run.measure_all", measure)
    record = Pipeline(Dataset.find(DATASET), "nnUNetPlans", "3d_fullres", [0], "cpu").record
    record.unlink()
    main([*RUN, "--dry-run"])
    assert (
        capsys.readouterr().out.splitlines()[-2].endswith("is measured as soon as the scans are preprocessed.")
        and not measured
    )
    shutil.copytree(fake / "saved", fake / "preprocessed" / DATASET, dirs_exist_ok=True)
    for _ in range(2):
        main([*RUN, "--dry-run"])
        assert capsys.readouterr().out.splitlines()[-2] == "Trainings that are not done: about 2 h 0 min."
    assert measured == [[STOCK, OURS]], "once"
    assert json.loads(record.read_text())["costs"].popitem()[0].startswith(f"cpu, {socket.gethostname()}, ")


def test_what_a_killed_run_has_started_is_not_started_twice(fake, capsys):
    with of_fake().claimed(), pytest.raises(SystemExit):
        main(RUN)
    assert "another run or a sweep is at it" in capsys.readouterr().err
    assert not (fake / "lines").exists()


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_is_the_best_that_is_there(monkeypatch, capsys, cuda, mps, device):
    from nnunetv2_crossmatch.commands.shared import as_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert as_device("auto") == torch.device(device) and as_device("cpu") == torch.device("cpu")
    assert ("no GPU was found" in capsys.readouterr().err) == (device == "cpu")


def test_a_command_holds_its_training_and_all_that_it_starts_ends_with_it(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "Dataset901_A" / f"{STOCK}__nnUNetPlans__3d_fullres" / "fold_0")
    pipeline = Pipeline(Dataset(None, tmp_path / "Dataset901_A", {}), "nnUNetPlans", "3d_fullres", [0], "cpu")
    monkeypatch.setattr(Pipeline, "record", tmp_path / "record.json")
    monkeypatch.setattr(Pipeline, "_trained_from", lambda self: [])
    script = f"""
import fcntl, os, signal, time
if os.fork() == 0:
    open({str(tmp_path / "loader")!r}, "w").write(str(os.getpid()))
    time.sleep(100)
while not (os.path.exists({str(tmp_path / "loader")!r}) and os.path.getsize({str(tmp_path / "loader")!r})):
    time.sleep(0.01)
while not os.path.exists({str(tmp_path / "seen")!r}):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = f"{sys.executable} -c {shlex.quote(script)}"
    held = []

    def look():
        while not (tmp_path / "loader").exists():
            time.sleep(0.01)
        held.append(is_claimed(run))
        (tmp_path / "seen").touch()

    looking = threading.Thread(target=look)
    looking.start()
    with pytest.raises(RuntimeError, match="failed, as it says above"):
        pipeline.do(Step("train", command, False, run))
    looking.join()
    assert held == [True] and not is_claimed(run)
    loader = int((tmp_path / "loader").read_text())
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(loader)], capture_output=True, text=True).stdout
    assert state.strip()[:1] in ("", "Z")
