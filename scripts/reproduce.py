"""A benchmark's whole protocol, from the download to a table beside the published rows, in slices of time.

Converts the data, plans, preprocesses, trains every trainer RUNS times on all labeled cases (fold "all"),
predicts the test list once with the last checkpoint and evaluates. What is done is not done again: a call stops
by itself, with all saved, before SLICE_MINUTES are over, with exit code 75 while there is work left, and the same
call made again goes on; the last prints the table. Converting and preprocessing are one piece, outside the slices.
Raw and preprocessed data lie where nnU-Net has them, run K has its own folder in nnUNet_results. With a
preprocessed dataset and the raw imagesTs and labelsTs that were copied here, SRC is not needed.

example: python scripts/reproduce.py la-8 "2018LA_Seg_Training Set" --trainers nnUNetTrainer nnUNetTrainerCrossMatch \\
             --runs 3 --epochs 150 --slice-minutes 9
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from experiment import OutOfTime, Run, build_trainer, predict, set_seed
from filelock import FileLock
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_crossmatch.cli import main as crossmatch
from nnunetv2_crossmatch.dataset_conversion import CONVERTERS
from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.evaluate import evaluate_folders
from nnunetv2_crossmatch.evaluation.report import format_benchmark, write_csv, write_json
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, summarize
from nnunetv2_crossmatch.methods.crossmatch_paper import CrossMatchPaperConstants
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.preprocessing.image_folder import group_channels
from nnunetv2_crossmatch.preprocessing.listing import has_training_scans, labeled_scans
from nnunetv2_crossmatch.utilities.files import write_json as save_json


@dataclass(frozen=True)
class Benchmark:
    """What to convert, and the configuration in which the papers train."""

    dataset_id: int
    convert: tuple[str, ...]
    configuration: str


BENCHMARKS = {
    f"{name}-{n}": Benchmark(converter.dataset_id + n, (name, "--labeled", str(n)), converter.configuration)
    for name, converter in CONVERTERS.items()
    for n in converter.published
}
for n in (4, 10):
    options = ("nifti", "--labeled", str(n), "--test", "40")
    BENCHMARKS[f"hippocampus-{n}"] = Benchmark(CONVERTERS["nifti"].dataset_id + n, options, "3d_fullres")
ABLATION: dict[str, dict] = {
    "without_ip": {"lambda_ip": 0.0},
    "without_tkd": {"lambda_kd": 0.6, "eta": 1.0},  # L_dkd keeps its weight
    "without_dkd": {"lambda_kd": 1.4, "eta": 0.0},  # L_tkd keeps its weight
    "without_feature_dropout": {"p_weak": 0.0, "p_strong": 0.0},
    "without_cutmix": {"p_cutmix": 0.0},
    **{f"threshold_{t:g}": {"threshold": t} for t in (0.0, 0.75, 0.85, 0.99)},
    **{f"eta_{e:g}": {"eta": e} for e in (0.1, 0.5, 0.7, 0.9)},
}


def prepare(benchmark: Benchmark, source: Path | None, plans: str) -> tuple[str, bool]:
    """Convert, plan and preprocess what is not there yet; stops if training and test overlap.

    Returns:
        The dataset's name, and whether it had to be planned.
    """
    d, c = str(benchmark.dataset_id), benchmark.configuration
    names = list(find_candidate_datasets(benchmark.dataset_id))
    if not names:
        if source is None:
            sys.exit(f"Dataset {d} is neither in nnUNet_raw nor in nnUNet_preprocessed: name SRC, the download.")
        crossmatch(["convert", benchmark.convert[0], str(source), "-d", d, *benchmark.convert[1:]])
        names = list(find_candidate_datasets(benchmark.dataset_id))
    raw, preprocessed = Path(nnUNet_raw) / names[0], Path(nnUNet_preprocessed) / names[0]
    plans_file, planned = preprocessed / f"{plans}.json", False
    if has_training_scans(raw):
        crossmatch(["check", "-d", d])
        cases = labeled_scans(raw, load_json(str(raw / "dataset.json")))
        if plans != "nnUNetPlans" and not plans_file.exists():
            sys.exit(f"{plans_file} is missing. Make these plans with nnU-Net and preprocess with them first.")
        if not plans_file.exists() or missing_arrays(plans_file, c, cases):
            command = ["nnUNetv2_plan_and_preprocess", "-d", d, "-c", c, "--verify_dataset_integrity"]
            subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], check=True)
            planned = True
        crossmatch(["preprocess", "-d", d, "-c", c, "-p", plans])
    return names[0], planned


def missing_arrays(plans_file: Path, configuration: str, cases: Iterable[str]) -> list[str]:
    """Labeled cases that an interrupted preprocessing left out."""
    identifier = PlansManager(str(plans_file)).get_configuration(configuration).data_identifier
    return [case for case in cases if not (plans_file.parent / identifier / f"{case}.pkl").exists()]


def carry_out(run: Run, deadline: float) -> dict:
    """Train, predict, evaluate, as far as it is not done; the run's result.

    Raises:
        OutOfTime: all is saved, call it again.
    """
    folder = run_folder(run)
    if (folder / "result.json").exists():
        return load_json(str(folder / "result.json"))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock", timeout=0):  # two calls at once must not train into one folder
        return _carry_out(run, folder, deadline)


def run_folder(run: Run) -> Path:
    """nnU-Net's results folder of the run."""
    return RunFolder.of(run.dataset, run.name, run.plans, run.configuration, run.fold).path


def _carry_out(run: Run, folder: Path, deadline: float) -> dict:
    raw = Path(nnUNet_raw) / run.dataset
    trainer = build_trainer(run, deadline)
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    if final.exists():
        trainer.load_checkpoint(str(final))
    else:
        if latest.exists():
            trainer.load_checkpoint(str(latest))
            set_seed(1000 * run.seed + trainer.current_epoch)
        trainer.run_training()
        if time.monotonic() > deadline:
            raise OutOfTime

    for part in ("imagesTs", "labelsTs"):
        if not (raw / part).is_dir():
            sys.exit(f"{raw / part} is missing: copy it here, or convert a source that has the test scans.")
    test = group_channels(raw / "imagesTs", trainer.dataset_json)
    predict(trainer, test, folder / "predictions", mirroring=True, deadline=deadline)
    evaluation = evaluate_folders(
        raw / "labelsTs",
        folder / "predictions",
        Path(nnUNet_preprocessed) / run.dataset / "dataset.json",
        default_num_processes,
    )
    summaries = summarize(evaluation)
    write_json(evaluation, summaries, folder / "evaluation.json")
    write_csv(evaluation, folder / "evaluation.csv")
    start, end = (trainer.logger.get_value(f"epoch_{t}_timestamps", step=None) for t in ("start", "end"))
    result = {
        **asdict(run),
        "test": {metric: summaries[MEAN_OF_CLASSES].statistics[metric].mean for metric in METRICS},
        "cases": len(evaluation.cases),
        "training_hours": sum(np.subtract(end, start)) / 3600,
        "hardware": torch.cuda.get_device_name() if run.device == "cuda" else "CPU",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    save_json(result, folder / "result.json")
    return result


def variants(trainer: str, ablation: bool) -> dict[str, dict]:
    """Constants of every variant of a trainer; only CrossMatchPaper has the ablation's."""
    constants = getattr(recursive_find_trainer_class_by_name(trainer), "constants", None)
    return {"": {}, **(ABLATION if ablation and isinstance(constants, CrossMatchPaperConstants) else {})}


def table(benchmark: str, results: list[dict]) -> str:
    """Mean and standard deviation over the runs of each trainer, above the published rows."""
    lines = {}
    for name in dict.fromkeys(result["name"] for result in results):
        runs = [result["test"] for result in results if result["name"] == name]
        values = np.array([[run[metric] for metric in METRICS[:4]] for run in runs]) * (100, 100, 1, 1)
        spread = values.std(0, ddof=1) if len(runs) > 1 else np.full(4, math.nan)
        lines[name] = tuple(
            f"{mean:.2f}" if len(runs) == 1 else f"{mean:.2f}+-{std:.2f}"
            for mean, std in zip(values.mean(0), spread, strict=True)
        )
    return format_benchmark(benchmark, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS, metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument("source", type=Path, nargs="?", metavar="SRC", help="folder of the download")
    parser.add_argument("--trainers", nargs="+", default=["nnUNetTrainer", "nnUNetTrainerCrossMatch"], metavar="TR")
    parser.add_argument("--runs", type=int, default=1, help="repetitions, run K with seed K (default: %(default)s)")
    parser.add_argument("--epochs", type=int, required=True, help="of 250 steps, for every trainer")
    parser.add_argument("--slice-minutes", type=float, default=math.inf, help="stop, with all saved, before that")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: %(default)s)")
    parser.add_argument(
        "--ablation",
        action="store_true",
        help="nnUNetTrainerCrossMatchPaper also without one term at a time, and over a grid",
    )
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.slice_minutes
    benchmark = BENCHMARKS[arguments.benchmark]
    dataset, prepared = prepare(benchmark, arguments.source, arguments.p)

    runs = [
        Run(
            dataset=dataset,
            plans=arguments.p,
            configuration=benchmark.configuration,
            trainer=trainer,
            name="_".join(filter(None, (trainer, f"{arguments.epochs}epochs", variant))),
            seed=seed,
            epochs=arguments.epochs,
            constants=constants,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        for seed in range(arguments.runs)
        for trainer in arguments.trainers
        for variant, constants in variants(trainer, arguments.ablation).items()
    ]
    results_folder = Path(nnUNet_results)
    results: list[dict] = []
    worked = prepared
    for run in runs:
        os.environ["nnUNet_results"] = str(results_folder / f"{arguments.benchmark}_run{run.seed}")
        is_done = (run_folder(run) / "result.json").exists()
        epoch = max((3600 * result["training_hours"] / run.epochs for result in results), default=0.0)
        try:
            # a call gets at least one epoch or prediction on, however short the slice
            if not is_done and worked and time.monotonic() + 2 * epoch > deadline:
                raise OutOfTime
            results.append(carry_out(run, deadline))
        except OutOfTime:
            print(f"{len(results)} of {len(runs)} runs are done; the slice is over. Make the same call again.")
            sys.exit(os.EX_TEMPFAIL)
        worked |= not is_done
    print(table(arguments.benchmark, results))


if __name__ == "__main__":
    main()
