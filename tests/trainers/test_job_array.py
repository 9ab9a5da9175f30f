"""Many trainings that start at once, and one that may write nowhere but to the results."""

import json
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_crossmatch.preprocessing import content, splits, unlabeled
from tests.conftest import DATASET


def test_eight_trainings_that_start_together_do_everything_once(dataset, make_trainer, tmp_path, monkeypatch):
    folder = dataset / "preprocessed" / DATASET
    fork = multiprocessing.get_context("fork")
    barrier, log, answers = fork.Barrier(8), tmp_path / "log", fork.SimpleQueue()

    def slow_and_logged(function, name):
        def call(*arguments):
            with open(log, "a") as f:
                f.write(f"{function.__name__} {name(*arguments)}\n")
            time.sleep(0.1)  # lets the others in, if there is no lock
            return function(*arguments)

        return call

    def preprocess(files, target, *_):
        for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
            target.with_name(target.name + suffix).touch()  # blosc2 does not survive a fork
        return content._look_at(files, None, reader, dataset_json)

    dataset_json = json.loads((folder / "dataset.json").read_text())
    reader = content._reader(dataset_json, [], folder)
    monkeypatch.setattr(
        unlabeled, "preprocess_scan", slow_and_logged(preprocess, lambda files, target, *_: target.name)
    )
    monkeypatch.setattr(content, "_look_at", slow_and_logged(content._look_at, lambda files, *_: files[0].name))
    monkeypatch.setattr(splits, "write_json", slow_and_logged(splits.write_json, lambda _, file: file.name))

    def start(number):
        trainer = make_trainer("nnUNetTrainerCrossMatch_smoke", fold=(0, 1, 2, 3, 4, "all")[number % 6])
        trainer.dataset_class = nnUNetDatasetBlosc2
        barrier.wait()
        answers.put((trainer._prepare_unlabeled(), (folder / "splits_final.json").stat().st_ino))

    trainings = [fork.Process(target=start, args=(number,)) for number in range(8)]
    for training in trainings:
        training.start()
    for training in trainings:
        training.join()
    assert [training.exitcode for training in trainings] == [0] * 8
    inode = (folder / "splits_final.json").stat().st_ino
    assert [answers.get() for _ in trainings] == [([f"scan{i}" for i in range(4)], inode)] * 8
    done = sorted(log.read_text().splitlines())
    assert done == sorted(
        ["write_json splits_final.json"]
        + [f"preprocess scan{i}" for i in range(4)]
        + [f"_look_at scan{i}_0000.nii.gz" for i in range(4)]
        + [f"_look_at {part}{i}_0000.nii.gz" for part, n in (("case", 5), ("test", 2)) for i in range(n)]
    )
    looked_at = content.read_content(folder)
    assert {part: len(cases) for part, cases in looked_at.items()} == {"imagesTr": 5, "imagesTs": 2, "unlabeled": 4}


def test_raw_and_preprocessed_folder_may_be_read_only(dataset, make_trainer):
    make_trainer("nnUNetTrainerCrossMatch_smoke", fold=0).on_train_start()
    folders = [dataset / "raw", dataset / "preprocessed"]
    mounted: list[Path] = []
    try:
        for folder in folders:
            if os.geteuid() != 0 or subprocess.run(["mount", "--bind", folder, folder]).returncode:
                pytest.skip("mounting a folder read-only needs root")
            mounted.append(folder)
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (folders[1] / DATASET / "file").touch()
        trainer = make_trainer("nnUNetTrainerCrossMatch_smoke", fold=0)
        trainer.on_train_start()
        trainer.train_step(next(trainer.dataloader_train))
    finally:
        for folder in mounted:
            subprocess.run(["umount", folder], check=True)
