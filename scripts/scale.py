"""What many unlabeled scans cost before and during training: seconds and memory by their number.

Small datasets of noise with N unlabeled scans each go through unlabeled preprocessing; the same with nothing to do;
the start of training and a few steps (the first time, when labeled scans are looked at, again, and stock nnU-Net's);
the check. A training has a fresh process, whose imports do not count; memory is the peak that Linux counts as resident.
All stays in FOLDER: where a call was interrupted, the same one goes on.

example: python scripts/scale.py 10 1000 20000 --folder scale --out scale.json
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from benchmark import STOCK, machine, take_step
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from small_plans import shrink

from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.content import FILE as CONTENT
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.unlabeled import preprocess_unlabeled

DATASET, CONFIGURATION, PLANS = "Dataset900_Scale", "3d_fullres", "nnUNetPlansSmall"
LABELED, SIDE = 5, 12  # scans, voxels
TRAINER = "nnUNetTrainerCrossMatch"


def make_dataset(base: Path, unlabeled: int) -> None:
    """Scans of noise, the labeled ones with a bright cube, and stock plans of a tiny network."""
    raw, rng = base / "raw" / DATASET, np.random.default_rng(0)
    label = np.pad(np.ones([SIDE // 2] * 3, np.uint8), SIDE // 4)
    for part, count in (("Tr", LABELED), ("Un", unlabeled)):
        (raw / f"images{part}").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.normal(100, 20, label.shape).astype(np.float32) + 50 * label
            sitk.WriteImage(sitk.GetImageFromArray(image), str(raw / f"images{part}" / f"{part}{i:06d}_0000.nii.gz"))
    (raw / "labelsTr").mkdir(exist_ok=True)
    for i in range(LABELED):
        sitk.WriteImage(sitk.GetImageFromArray(label), str(raw / "labelsTr" / f"Tr{i:06d}.nii.gz"))
    channels, labels = {"0": "MRI"}, {"background": 0, "cube": 1}
    description = {"channel_names": channels, "labels": labels, "numTraining": LABELED, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(description))
    with redirect_stdout(StringIO()), patch.dict(os.environ, nnUNet_n_proc_DA="1"):  # planning needs one
        extract_fingerprints([900], num_processes=1)
        plan_experiments([900])
        preprocess([900], configurations=[CONFIGURATION], num_processes=[1])
    plans = {**load_json(str(base / "preprocessed" / DATASET / "nnUNetPlans.json")), "plans_name": PLANS}
    shrink(plans["configurations"][CONFIGURATION], features=[4, 8, 8], patch=[8, 8, 8], batch=2)
    save_json(plans, str(base / "preprocessed" / DATASET / f"{PLANS}.json"))


def planned(base: Path) -> Planned:
    raw = base / "raw" / DATASET
    dataset = Dataset(raw, base / "preprocessed" / DATASET, load_json(str(raw / "dataset.json")))
    return Planned(dataset, dataset.plans(PLANS), CONFIGURATION)


def prepare(base: Path, processes: int) -> dict:
    before = Manifest.read(planned(base).unlabeled_folder).cases
    start = time.perf_counter()
    cases = preprocess_unlabeled(planned(base), processes)
    return {"scans": len(cases) - len(before), "seconds": time.perf_counter() - start}


def check(base: Path, processes: int) -> dict:
    start = time.perf_counter()
    findings = check_dataset(planned(base).dataset, processes)
    return {"scans": sum(map(len, findings.content.values())), "seconds": time.perf_counter() - start}


def train(base: Path, name: str, steps: int) -> dict:
    """Start a training and take a few steps of its middle; peak resident memory of it and of a loader's worker."""
    plans, dataset_json = planned(base).plans, planned(base).dataset.json
    cls = recursive_find_trainer_class_by_name(name)
    start = time.perf_counter()
    with redirect_stdout(StringIO()):  # the log
        trainer = cls({**plans.plans, "continue_training": False}, CONFIGURATION, 0, dataset_json, torch.device("cpu"))
        trainer.on_train_start()
    result, times = {"seconds": time.perf_counter() - start}, []
    trainer.current_epoch, trainer._step_in_epoch = trainer.num_epochs // 2, 0
    trainer.network.train()
    for _ in range(steps):
        start = time.perf_counter()
        take_step(trainer)
        times.append(time.perf_counter() - start)
    workers = [peak_memory(worker.pid) for worker in multiprocessing.active_children()]
    memory = {"peak_mib": peak_memory(os.getpid()), "worker_peak_mib": max(workers, default=0.0)}
    trainer.disable_checkpointing = True
    with redirect_stdout(StringIO()):
        trainer.on_train_end()  # ends the workers
    return {**result, "step_seconds": statistics.median(times), **memory}


def peak_memory(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def in_fresh_process(*arguments) -> dict:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(train, *arguments).result()


def measure(base: Path, unlabeled: int, arguments: argparse.Namespace) -> dict[str, dict]:
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(base / name)
    preprocessed = base / "preprocessed" / DATASET
    if not (preprocessed / f"{PLANS}.json").exists():
        make_dataset(base, unlabeled)
    (preprocessed / CONTENT).unlink(missing_ok=True)  # the first start looks at the labeled scans
    return {
        "preprocess": prepare(base, arguments.np),
        "nothing to do": prepare(base, arguments.np),
        "first start": in_fresh_process(base, TRAINER, arguments.steps),
        "start": in_fresh_process(base, TRAINER, arguments.steps),
        "stock start": in_fresh_process(base, STOCK, arguments.steps),
        "check": check(base, arguments.np),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", nargs="+", type=int, metavar="N", help="numbers of unlabeled scans")
    parser.add_argument("--folder", type=Path, required=True, help="for the datasets, 30 KB a scan")
    parser.add_argument("-np", type=int, default=2, help="worker processes of preprocessing and check")
    parser.add_argument("--steps", type=int, default=100, help="training steps to time")
    parser.add_argument("--out", type=Path, help="write everything as JSON, with hardware and versions")
    arguments = parser.parse_args()
    results = {n: measure(arguments.folder.resolve() / str(n), n, arguments) for n in arguments.n}
    for n, result in results.items():
        print(f"{n} unlabeled scans")
        for name, figures in result.items():
            print(f"  {name:14}", ", ".join(f"{value:.4g} {figure}" for figure, value in figures.items()))
    if arguments.out:
        settings = argparse.Namespace(**{**vars(arguments), "folder": str(arguments.folder), "device": "cpu"})
        arguments.out.write_text(json.dumps({**machine(settings), "unlabeled": results}, indent=2))


if __name__ == "__main__":
    main()
