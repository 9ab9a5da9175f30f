"""The matrix of trainers and folds, on this machine and with SLURM's commands replaced by ones that write down."""

import inspect
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args

from nnunetv2_crossmatch import cli
from nnunetv2_crossmatch.comparison import page
from nnunetv2_crossmatch.nnunet.run_folder import LATEST, Progress, RunFolder
from nnunetv2_crossmatch.sweep import clusters, matrix
from nnunetv2_crossmatch.sweep.clusters import Local
from nnunetv2_crossmatch.sweep.runs import Training
from nnunetv2_crossmatch.sweep.table import Table, format_table
from nnunetv2_crossmatch.trainers import launch
from nnunetv2_crossmatch.trainers.claims import claimed, job_folder
from tests.conftest import DATASET

SMOKE = "nnUNetTrainerCrossMatch_smoke"
LINE = ["sweep", "-d", "901", "-c", "3d_fullres", "-p", "nnUNetPlansSmall", "-device", "cpu"]
LOCAL = [*LINE, "--cluster", "local"]
SLURM = [*LINE, "--cluster", "slurm"]
TRAINERS = '''
import os, signal, time
from pathlib import Path
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2_crossmatch.trainers import nnUNetTrainerCrossMatch_smoke

class nnUNetTrainerShort(nnUNetTrainer):
    """Stock."""
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1

class nnUNetTrainerShortTwice(nnUNetTrainerShort):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2

class nnUNetTrainerEventful(nnUNetTrainerCrossMatch_smoke):
    """Something happens in the second epoch, once; a quick validation."""
    def perform_actual_validation(self, save_probabilities=False):
        Path(self.output_folder, "validation").mkdir()
        Path(self.output_folder, "validation", "summary.json").touch()
        self.print_to_log_file("Validation complete")

    def on_epoch_start(self):
        super().on_epoch_start()
        self.save_every = 1
        once = Path(self.output_folder, "once")
        if self.current_epoch == 1 and not once.exists():
            once.touch()
            self.event()

class nnUNetTrainerStumbles(nnUNetTrainerEventful):
    def event(self):
        raise RuntimeError("the lights went out")

class nnUNetTrainerNearTimeLimit(nnUNetTrainerEventful):
    def event(self):
        os.kill(os.getpid(), signal.SIGUSR2)

class nnUNetTrainerWaits(nnUNetTrainerEventful):
    def event(self):
        time.sleep(600)
'''
FAKES = {
    "sbatch": 'n=$(ls "$BOOK" | grep -c script); cp "$1" "$BOOK/script$n"; echo "$n PENDING" >> "$BOOK/queue"\n'
    'echo "Submitted batch job $n"',
    "squeue": 'cat "$BOOK/queue"',
    "srun": 'while [[ $1 == -* ]]; do case $1 in --output|--error) shift;; esac; shift; done; exec "$@"',
    "scontrol": 'echo "$@" >> "$BOOK/scontrol"',
}


def run_of(trainer: str, fold: int | str = 0) -> RunFolder:
    results = Path(os.environ.get("nnUNet_results", "nowhere"))
    return RunFolder.of(DATASET, trainer, "nnUNetPlansSmall", "3d_fullres", fold, results)


def epochs(run: RunFolder) -> list[list[str]]:
    """Of each training log, in order."""
    logs = sorted(run.path.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    return [re.findall(r": Epoch (\d+)", log.read_text()) for log in logs]


@pytest.fixture
def main(monkeypatch):
    """main(argv) -> the arguments of the comparison at the end, None if there was none."""
    sweep, compared = cli.main, []
    monkeypatch.setattr(page, "compare_to_page", lambda *arguments: compared.append(arguments))

    def call(argv):
        compared.clear()
        sweep(argv)
        return compared[0] if compared else None

    yield call
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def trainers(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "trainers"
    folder.mkdir()
    (folder / "of_the_tests.py").write_text(TRAINERS)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))


@pytest.fixture
def book(tmp_path, monkeypatch) -> Path:
    """SLURM's commands; what they were given is in this folder, and its file queue is the queue."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / "queue").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("BOOK", str(folder))
    return folder


@pytest.fixture
def ctrl_c(monkeypatch):
    """ctrl_c(n, between): the sweep is interrupted after n looks; what happens between two of them."""

    def after(looks, between=lambda: None):
        left = iter(range(looks - 1))

        def sleep(_):
            if next(left, None) is None:
                raise KeyboardInterrupt
            between()

        monkeypatch.setattr(matrix, "time", SimpleNamespace(sleep=sleep))

    return after


def test_local_matrix_fails_continues_and_ends(dataset, trainers, main, monkeypatch, capsys):
    """With workers for augmentation, which must not keep a training that fails."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    wait, end = time.sleep, time.monotonic() + 300

    def sleep(seconds):
        assert time.monotonic() < end, "a job does not end"
        wait(seconds)

    monkeypatch.setattr(matrix, "time", SimpleNamespace(sleep=sleep))
    matrix_of = [*LOCAL, "-tr", "nnUNetTrainerShort", "nnUNetTrainerStumbles", "-f", "0"]
    short, stumbles = run_of("nnUNetTrainerShort"), run_of("nnUNetTrainerStumbles")
    with pytest.raises(SystemExit) as exit_info:
        main(matrix_of)
    out, err = capsys.readouterr()
    assert exit_info.value.code == 2
    assert err.splitlines()[-1].endswith(": 1 of 2 failed: nnUNetTrainerStumbles fold 0. See the logs above.")
    failed = next(line for line in out.splitlines() if "failed" in line)
    assert failed.startswith("nnUNetTrainerStumbles fold 0: failed: RuntimeError: the lights went out (")
    log = Path(failed.rpartition("(")[2].rstrip(")"))
    assert "the lights went out" in log.read_text() and log.is_relative_to(job_folder(stumbles))
    assert short.is_done and not stumbles.is_trained
    assert short.progress()[:2] == (1, 1) and stumbles.progress()[:2] == (1, 2)

    compared = main(matrix_of)
    assert compared is not None
    of_dataset, *which = compared
    assert of_dataset.name == DATASET
    assert which[:4] == ["nnUNetPlansSmall", "3d_fullres", ["nnUNetTrainerShort", "nnUNetTrainerStumbles"], [0]]
    assert which[4:6] == [False, torch.device("cpu")], "validation cases, on the device of the trainings"
    assert stumbles.is_done and epochs(stumbles) == [["0"], ["1"]]
    assert epochs(short) == [["0"]], "what is done is not started again"
    assert stumbles.progress()[:2] == (2, 2)
    for run in (short, stumbles):
        resources = json.loads((run.path / "resources.json").read_text())
        assert resources["device"] == "cpu" and resources["peak_memory_bytes"] > 50e6

    before = sorted((dataset / "results").rglob("*"))
    assert main(matrix_of) == compared
    assert main([*LOCAL, "-tr", "nnUNetTrainerShort", "-f", "0", "0"]) is None, "one trainer is not compared"
    assert set((dataset / "results").rglob("*")) - {job_folder(r) / "lock" for r in (short, stumbles)} <= set(before)


@pytest.mark.parametrize(
    ("files", "goes_on", "validates"),
    [
        ([], False, False),
        (["checkpoint_latest.pth", "checkpoint_best.pth"], True, False),
        (["checkpoint_best.pth"], True, False),
        (["checkpoint_final.pth", "checkpoint_best.pth", "validation/case0.nii.gz"], False, True),
    ],
)
def test_nnunet_is_told_how_far_the_run_is(dataset, monkeypatch, files, goes_on, validates):
    run, asked = run_of("nnUNetTrainer", "all"), {}
    for file in files:
        (run.path / file).parent.mkdir(parents=True, exist_ok=True)
        (run.path / file).touch()

    def run_training(*args, **kwargs):
        asked.update(inspect.signature(nnunet).bind(*args, **kwargs).arguments)

    nnunet = launch.run_training
    monkeypatch.setattr(launch, "run_training", run_training)
    Training(run, "cpu", 1, "")()
    assert asked == {
        "dataset_name_or_id": DATASET,
        "configuration": "3d_fullres",
        "fold": "all",
        "trainer_class_name": "nnUNetTrainer",
        "plans_identifier": "nnUNetPlansSmall",
        "num_gpus": 1,
        "continue_training": goes_on,
        "only_run_validation": validates,
        "pretrained_weights": None,
        "device": torch.device("cpu"),
    }
    assert not run.is_done


def test_ended_local_sweep_ends_its_training(dataset, trainers, main, monkeypatch, capfd):
    run, wait = run_of("nnUNetTrainerWaits"), time.sleep

    def sleep(seconds):
        wait(seconds)
        if (run.path / "once").exists():
            assert run in Local([run], "cpu", 1).states(), "it is running, for every other sweep"
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(matrix, "time", SimpleNamespace(sleep=sleep))
        with pytest.raises(SystemExit) as exit_info:
            main([*LOCAL, "-tr", run.trainer, "-f", "0"])
    out, err = capfd.readouterr()
    assert exit_info.value.code == 130 and "To resume, run the same command again" in out and "Traceback" not in err
    with claimed(run, seconds=30):
        pass
    assert not run.is_trained and (run.path / "checkpoint_latest.pth").exists()


@pytest.mark.parametrize("trainer", [SMOKE, "nnUNetTrainerShortTwice"])
def test_a_training_stops_after_the_epoch_before_its_time_is_over_and_goes_on_later(dataset, trainers, trainer):
    run = run_of(trainer)
    assert Training(run, "cpu", 1, "", until=time.time())() is False
    assert [file.name for file in run.checkpoints if "best" not in file.name] == [LATEST]
    assert trainer != SMOKE or "\n0," in (run.path / "curves.csv").read_text(), "all that ends an epoch"
    assert Training(run, "cpu", 1, "", until=time.time())() is True, "its last epoch is no reason to stop"
    begun = [epoch for log in epochs(run) for epoch in log]  # one log if both begin in the same second
    assert run.is_done and begun == ["0", "1"]


def test_what_is_stopped_is_out_of_time_and_what_waits_is_not_begun(dataset, main, capsys):
    local = Local(runs := [run_of(SMOKE, fold) for fold in (0, 1)], "cpu", 1, until=time.time())
    local.jobs[runs[0]] = SimpleNamespace(done=lambda: True, exception=lambda: None, result=lambda: False)
    assert matrix.follow(runs, local) == []
    assert capsys.readouterr().out.splitlines() == [f"{run}: out of time" for run in runs]

    runs[1].path.mkdir(parents=True)
    runs[1].checkpoint(LATEST).touch()
    line = [*LOCAL, "-tr", SMOKE, "nnUNetTrainer", "-f", "0", "1", "--hours", "1e-9"]
    assert main(line) is None, "nothing to compare"
    predict = f"-d {DATASET} -c 3d_fullres -f 1 -tr {SMOKE} -p nnUNetPlansSmall -chk {LATEST} -device cpu"
    end = capsys.readouterr().out.splitlines()[-2:]
    assert end[0].startswith("The time is over. 4 of 4 are not done") and end[1].endswith(predict)


@pytest.fixture
def submitted(monkeypatch) -> dict[RunFolder, SimpleNamespace]:
    """Jobs of a machine with two GPUs, in the order they were started; set ``ended`` to what they return."""
    jobs = {}

    def submit(_, training):
        job = jobs[training.run] = SimpleNamespace(ended=None, exception=lambda: None)
        job.done, job.result = lambda: job.ended is not None, lambda: job.ended
        return job

    monkeypatch.setattr(clusters.submitit.LocalExecutor, "submit", submit)
    monkeypatch.setattr(clusters.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return jobs


def test_a_slot_that_is_free_for_lack_of_time_starts_nothing(dataset, submitted, monkeypatch, capsys):
    runs = [run_of(SMOKE, fold) for fold in range(4)]
    local = Local(runs, "cuda", 1, until=time.time() + 3600)
    looks = iter([(runs[0], True), (runs[1], False), (runs[2], False)])  # the first is trained before the time is over

    def end_one(_):
        run, ended = next(looks)
        submitted[run].ended = ended
        if ended:
            monkeypatch.setattr(RunFolder, "is_done", property(lambda self: self == run))

    monkeypatch.setattr(matrix, "time", SimpleNamespace(sleep=end_one))
    assert matrix.follow(runs, local) == [] and [*submitted] == runs[:3]
    ends = [line for line in capsys.readouterr().out.splitlines() if "running" not in line]
    assert ends == [f"{runs[0]}: done (1 of 4 done)", *(f"{runs[i]}: out of time" for i in (1, 3, 2))]
    local.start(runs[3])
    assert runs[3] not in submitted, "the training before it stopped after this run was looked at"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("fails", [False, True])
def test_what_begins_with_stock_waits_for_it(dataset, submitted, monkeypatch, capsys, order, fails):
    stock, student = run_of("nnUNetTrainer"), run_of("nnUNetTrainerCrossMatchFromStock")
    other_fold = run_of(student.trainer, 1)  # whose stock is no part of this
    runs = [stock, student, other_fold][::order]
    local = Local(runs, "cuda", 1)
    started = []

    def end(_):
        started.append(set(submitted))
        for run, job in submitted.items():
            if job.ended is None and not (run == stock and len(started) < 3):  # it takes longer
                job.ended = True
                if not (fails and run == stock):
                    run.validation.mkdir(parents=True)
                    for file in (run.checkpoint(), run.validation / "summary.json"):
                        file.touch()
                    line = "2026-01-01 00:00:00.000000: Validation complete\n"
                    (run.path / "training_log_2026_1_1_1_1_1.txt").write_text(line)

    monkeypatch.setattr(matrix, "time", SimpleNamespace(sleep=end))
    monkeypatch.setattr(Local, "error", lambda *_: "out of luck")
    assert set(matrix.follow(runs, local)) == ({stock, student} if fails else set())
    assert started[:3] == [{stock, other_fold}] * 3 and (student in submitted) is not fails
    if fails:
        assert f"{student}: failed: it begins with {stock}, which failed\n" in capsys.readouterr().out


def test_on_slurm_what_begins_with_stock_depends_on_its_job(dataset, book, main, ctrl_c):
    student = "nnUNetTrainerCrossMatchFromStock"
    ctrl_c(2)
    with pytest.raises(SystemExit):
        main([*SLURM, "-tr", student, "nnUNetTrainer", "-f", "0", "--seeds", "2"])
    scripts = [(book / f"script{i}").read_text() for i in range(4)]
    names = ["nnUNetTrainer_0", "nnUNetTrainer_0_seed_2", f"{student}_0", f"{student}_0_seed_2"]
    for script, name, after in zip(scripts, names, ["", "", "0", "1"], strict=True):
        assert f"job-name={name}\n" in script
        assert re.findall("dependency=(.*)", script) == ([f"afterok:{after}"] if after else [])
        assert "#SBATCH --kill-on-invalid-dep=yes\n" in script


def test_what_another_process_trains_is_neither_started_nor_trained_twice(dataset, main, ctrl_c, capsys):
    run = run_of(SMOKE)
    fork = multiprocessing.get_context("fork")
    held, end = fork.Event(), fork.Event()

    def hold():
        with claimed(run):
            held.set()
            end.wait()

    other = fork.Process(target=hold)
    other.start()
    held.wait()
    try:
        ctrl_c(3)
        with pytest.raises(SystemExit):
            main([*LOCAL, "-tr", SMOKE, "-f", "0"])
        assert capsys.readouterr().out.splitlines()[0] == f"{run}: running"
        assert not list(job_folder(run).glob("*.pkl"))
        with pytest.raises(RuntimeError, match=f"{SMOKE} fold 0 is being trained by another process"):
            Training(run, "cpu", 1, "")()
        assert not run.path.exists()
    finally:
        end.set()
        other.join()


@pytest.mark.parametrize(
    ("visible", "gpus_per_job", "slots"),
    [
        (None, 1, ["0", "1", "2", "3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("GPU-a,GPU-b,GPU-c,MIG-d", 3, ["GPU-a,GPU-b,GPU-c"]),
    ],
)
def test_as_many_local_jobs_as_there_are_gpus_for(dataset, monkeypatch, visible, gpus_per_job, slots):
    class Job:
        ended = False

        def done(self):
            return self.ended

    submitted: list[Training] = []
    monkeypatch.setattr(clusters.submitit.LocalExecutor, "submit", lambda _, job: submitted.append(job) or Job())
    monkeypatch.setattr(clusters.torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runs = [run_of(SMOKE, fold) for fold in range(5)]
    local = Local(runs, "cuda", gpus_per_job)
    for run in runs:
        local.start(run)
    assert [job.gpus for job in submitted] == slots
    assert local.states() == dict.fromkeys(runs[: len(slots)], "running")
    local.jobs[runs[len(slots) - 1]].ended = True  # type: ignore[attr-defined]
    local.start(runs[-1])
    assert [job.gpus for job in submitted] == [*slots, slots[-1]] and submitted[-1].run == runs[-1]


def test_slurm_gets_what_was_asked_for_and_no_job_twice(dataset, book, main, ctrl_c, capsys):
    line = [*SLURM, "-tr", SMOKE, "nnUNetTrainer", "-f", "0", "1", "--partition", "gpu", "--hours", "1.5"]
    ctrl_c(2)
    with pytest.raises(SystemExit) as exit_info:
        main(line)
    assert exit_info.value.code == 130 and "Jobs on SLURM continue" in capsys.readouterr().out
    scripts = [(book / f"script{i}").read_text() for i in range(4)]
    for script, name in zip(scripts, [f"{SMOKE}_0", "nnUNetTrainer_0", f"{SMOKE}_1", "nnUNetTrainer_1"], strict=True):
        for option in ("time=90", "partition=gpu", "requeue", f"job-name={name}", "signal=USR2@90", "cpus-per-task=1"):
            assert f"#SBATCH --{option}\n" in script
        assert "gpus" not in script and "srun --unbuffered" in script and "--cpus-per-task=1 " in script

    (book / "queue").write_text("0 RUNNING\n1 PENDING\n3 PENDING\n")  # 2 has ended, with nothing
    with pytest.raises(SystemExit):
        main(line)
    out = capsys.readouterr().out
    assert f"{SMOKE} fold 0: running" in out
    again = sorted(book.glob("script*"))
    assert [script.name for script in again] == ["script0", "script1", "script2", "script3", "script4"]
    assert f"job-name={SMOKE}_1\n" in again[-1].read_text()

    (book / "queue").write_text("0 RUNNING\n1 RUNNING\n3 PENDING\n4 RUNNING\n")
    run = run_of(SMOKE, 1)
    (job_folder(run) / "4_0_log.err").write_text("Traceback\nRuntimeError: out of luck\n\n")
    ctrl_c(4, lambda: (book / "queue").write_text("0 RUNNING\n1 RUNNING\n3 PENDING\n"))
    with pytest.raises(SystemExit):
        main(line)
    out = capsys.readouterr().out
    assert (
        f"{run}: failed: killed (memory? no checkpoint within --hours? canceled?) after: RuntimeError: out of luck"
        in out
    )
    assert len(list(book.glob("script*"))) == 5, "what has failed is for the next call"


def test_slurm_gpus(dataset, book, main, ctrl_c):
    ctrl_c(1)
    with pytest.raises(SystemExit):
        main([*SLURM, "-device", "cuda", "--gpus-per-job", "2", "-tr", SMOKE, "-f", "all"])
    script = (book / "script0").read_text()
    assert "#SBATCH --gpus-per-node=2\n" in script and "#SBATCH --time=1440\n" in script
    assert "partition" not in script


def test_slurm_job_near_its_time_limit_is_queued_again_and_goes_on(dataset, trainers, book, main, ctrl_c):
    run = run_of("nnUNetTrainerNearTimeLimit")
    ctrl_c(1)
    with pytest.raises(SystemExit):
        main([*SLURM, "-tr", run.trainer, "-f", "0"])
    job = {
        **os.environ,
        "SLURM_JOB_ID": "0",
        "SLURM_PROCID": "0",
        "PATH": f"{book.parent / 'bin'}:{os.environ['PATH']}",
    }
    first = subprocess.run(["bash", book / "script0"], env=job, capture_output=True, text=True)
    assert first.returncode, "it has been put off"
    assert (book / "scontrol").read_text() == "requeue 0\n"
    assert not run.is_trained
    second = subprocess.run(["bash", book / "script0"], env=job, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert run.is_done and epochs(run) == [["0"], ["1"]]
    (book / "queue").write_text("")
    assert main([*SLURM, "-tr", run.trainer, "-f", "0"]) is None
    assert len(list(book.glob("script*"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-tr", "nnUNetTrainerNoSuch"], "Could not find requested nnunet trainer nnUNetTrainerNoSuch"),
        (["-c", "3d_lowres"], "-c 3d_lowres: nnUNetPlansSmall has 2d, 3d_fullres. Did you mean 3d_fullres?"),
        (
            ["-p", "nnUNetPlansOther"],
            "nnUNetPlansOther.json. Run nnUNetv2_plan_and_preprocess -d 901",
        ),
        (["-d", "902"], "There is no dataset 902. There are: Dataset901_Balls."),
        (["-f", "4", "5", "all"], "-f all: it holds no case out and cannot be compared with other folds"),
        (["-f", "4", "5", "6"], "-f 5 6: Dataset901_Balls has 5 folds, counted from 0"),
        (["-device", "cuda", "--gpus-per-job", "3"], "--gpus-per-job 3: this machine shows 2 GPUs"),
        (["--gpus-per-job", "2"], "--gpus-per-job 2: at least 1, and no more with -device cpu"),
        (["--gpus-per-job", "0"], "--gpus-per-job 0: at least 1"),
        (["--partition", "gpu"], "local has no such option"),
        (["-device", "cuda", "--gpus-per-job", "2", "--hours", "1"], "on several GPUs cannot be stopped"),
        (["--cluster", "slurm"], "there is no sbatch, srun, squeue here"),
        (["--cluster", "slurm", "--hours", "-1"], "--hours -1.0: more than 0"),
    ],
)
def test_bad_input_starts_nothing(dataset, main, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(clusters.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit) as exit_info:
        main([*LOCAL, "-tr", SMOKE, "-f", "0", *arguments])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("nnUNetv2_crossmatch:") and message in err
    assert not list((dataset / "results").iterdir())


@pytest.mark.parametrize("folder", ["nnUNet_preprocessed", "nnUNet_results"])
def test_a_path_that_is_not_set_is_named(dataset, main, monkeypatch, capsys, folder):
    monkeypatch.delenv(folder)
    with pytest.raises(SystemExit):
        main([*LOCAL, "-tr", SMOKE, "-f", "0"])
    assert f"{folder} is not defined" in capsys.readouterr().err


def test_one_trainer_is_trained_without_the_raw_scans(dataset, main, monkeypatch, capsys):
    monkeypatch.setattr(RunFolder, "is_done", True)
    monkeypatch.delenv("nnUNet_raw")
    main([*LOCAL, "-tr", "nnUNetTrainer", "-f", "0"])
    assert f"Next: nnUNetv2_predict -i IN -o OUT -d {DATASET} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*LOCAL, "-tr", "nnUNetTrainer", SMOKE, "-f", "0"])
    assert "nnUNet_raw is not defined" in capsys.readouterr().err, "a comparison reads them"


def test_not_preprocessed(dataset, main, capsys):
    shutil.rmtree(dataset / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres")
    with pytest.raises(SystemExit):
        main([*LOCAL, "-tr", SMOKE, "-f", "0"])
    assert "Run nnUNetv2_preprocess -d 901 -plans_name nnUNetPlansSmall" in capsys.readouterr().err


def test_split_is_made_before_the_jobs_and_by_patient(dataset, main, capsys):
    patients = {f"case{i}": "one" if i < 3 else "two" for i in range(5)}
    (dataset / "raw" / DATASET / "patients.json").write_text(json.dumps(patients))
    with pytest.raises(SystemExit):
        main([*LOCAL, "-tr", "nnUNetTrainer", "-f", "2"])
    assert "-f 2: Dataset901_Balls has 2 folds" in capsys.readouterr().err
    runs = matrix.make_runs("901", "3d_fullres", "nnUNetPlansSmall", ["nnUNetTrainer"], None)
    assert [run.fold for run in runs] == [0, 1]


def test_a_seed_has_a_folder_of_its_own_and_the_same_preprocessed_scans_for_nnunet_too(dataset):
    what = "901", "3d_fullres", "nnUNetPlansSmall", ["nnUNetTrainer", SMOKE], [0, 1]
    runs = matrix.make_runs(*what, 2)
    assert runs[:4] == matrix.make_runs(*what) and len(set(runs)) == 8
    assert str(runs[4]) == "nnUNetTrainer fold 0 (seed 2)" and runs[4].plans == "nnUNetPlansSmall_seed2"
    first, second = (
        get_trainer_from_args("901", "3d_fullres", 0, "nnUNetTrainer", run.plans, False, torch.device("cpu"))
        for run in (runs[0], runs[4])
    )
    assert (Path(first.output_folder), Path(second.output_folder)) == (runs[0].path, runs[4].path)
    assert first.preprocessed_dataset_folder == second.preprocessed_dataset_folder


def test_plans_that_change_do_not_reach_a_seed_that_is_trained(dataset):
    what = "901", "3d_fullres", "nnUNetPlansSmall", ["nnUNetTrainer"], [0, 1]
    folder = dataset / "preprocessed" / DATASET
    plans, copy = (folder / f"nnUNetPlansSmall{seed}.json" for seed in ("", "_seed2"))

    def change(patch_size):
        content = json.loads(plans.read_text())
        content["configurations"]["3d_fullres"]["patch_size"] = patch_size
        plans.write_text(json.dumps(content))

    def copied():
        content = json.loads(copy.read_text())
        return content["plans_name"], content["configurations"]["3d_fullres"]["patch_size"]

    matrix.make_runs(*what, 2)
    change([8, 8, 8])
    run = matrix.make_runs(*what, 2)[-1]
    assert copied() == ("nnUNetPlansSmall_seed2", [8, 8, 8]), "nothing was trained with the copy"
    run.path.mkdir(parents=True)
    run.checkpoint(LATEST).touch()
    matrix.make_runs(*what, 2)
    change([8, 16, 8])
    with pytest.raises(ValueError, match=re.escape(f"Move away {run.model_folder} to train")):
        matrix.make_runs(*what, 3)
    assert copied()[1] == [8, 8, 8] and not (folder / "nnUNetPlansSmall_seed3.json").exists()


def test_what_is_trained_is_validating(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / DATASET / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0")
    shown = []

    class Fake(clusters.Cluster):
        interval = 0

        def states(self):
            if len(shown) == 2:
                run.path.mkdir(parents=True)
                run.checkpoint().touch()
            elif len(shown) == 3:
                run.validation.mkdir()
                (run.validation / "summary.json").touch()
                line = "2026-01-01 00:00:00.000000: Validation complete\n"
                (run.path / "training_log_2026_1_1_1_1_1.txt").write_text(line)
            return {run: "running"} if self.jobs and not run.is_done else {}

        def start(self, run, after=None):
            self.jobs[run] = None

        def close(self):
            pass

    monkeypatch.setattr(Table, "show", lambda table, states, *_: shown.append(states[run]))
    assert matrix.follow([run], Fake([run], "cpu", 1)) == []
    assert shown == ["waiting", "running", "validating", "done"]


def test_table():
    states = {
        run_of("A"): "done",
        run_of("LongName", "all"): "running",
        run_of("A", 1): "failed",
        run_of("B"): "running",
        run_of("C"): "waiting",
        run_of("D"): "validating",
    }
    known = [
        Progress(10, 10, 1.234, 12.34),
        Progress(3, None, None),
        Progress(2, 10, 100.4, 200.8),
        Progress(3, 100, 100.4, 200.8),
        Progress(None, None, None),
        Progress(5, 5, 60.0, 300.0),
    ]
    errors = {run_of("A", 1): "ValueError: no (log)"}
    assert format_table(states, dict(zip(states, known, strict=True)), errors) == [
        "trainer   fold  state       epoch  s/epoch  trained  left",
        "A         0     done        10/10  1.23     12 s",
        "LongName  all   running     3/?",
        "A         1     failed      2/10   100      3 min                ValueError: no (log)",
        "B         0     running     3/100  100      3 min    2 h 44 min",
        "C         0     waiting",
        "D         0     validating  5/5    60       5 min",
        "1 of 6 done",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_the_table_redrawn_and_a_file_the_changes(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "5")
    table, runs = Table(), [run_of("A"), run_of("B")]
    known = dict.fromkeys(runs, Progress(None, None, None))
    for state in ("waiting", "waiting", "running"):
        table.show({runs[0]: state, runs[1]: "done"}, known, {})
    out = capsys.readouterr().out
    if not terminal:
        assert out.splitlines() == ["B fold 0: done (1 of 2 done)", "A fold 0: running"]
        return
    first, second, third = out.split("\x1b[J")[1:]
    assert first == "trainer  fold  state\nA        0     waiti\nB        0     done\n1 of 2 done\n\x1b[4F"
    assert second == first and third == first.replace("waiti", "runni").removesuffix("\x1b[4F")
    table.show(dict.fromkeys([*runs, run_of("C")], "waiting"), known | {run_of("C"): known[runs[0]]}, {})
    assert "\x1b" not in capsys.readouterr().out, "more than the screen holds"
