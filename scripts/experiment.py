"""One training run with chosen constants and seed, scored on held-out and on hidden labels.

Trains through the real trainer in this process, on the CPU or GPU, then predicts with nnU-Net's predictor
(no test-time mirroring) and appends one JSON line: Dice of the test cases (imagesTs/labelsTs) and of some
unlabeled cases whose labels are hidden in labelsUn. Choose constants by the latter, report the former.

example: python scripts/experiment.py -d 4 -p nnUNetPlansSmall --seed 0 --steps 3000 --set threshold=0.75
"""

import argparse
import ast
import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.preprocessing.image_folder import group_channels
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled

STEPS_PER_EPOCH = 250


class OutOfTime(Exception):
    """The deadline is near; all is saved, and the same call goes on another time."""


@dataclass(frozen=True)
class Run:
    """One training of a fold ``all`` or of a number, in the results folder of the trainer class ``name``."""

    dataset: str
    plans: str
    configuration: str
    trainer: str
    name: str
    seed: int
    epochs: int
    fold: str = "all"
    constants: dict = field(default_factory=dict)
    momentum: float = 0.99
    device: str = "cpu"


def build_trainer(run: Run, deadline: float = math.inf):
    """The trainer, initialized. With a deadline (time.monotonic) it saves and raises OutOfTime before it."""
    base = recursive_find_trainer_class_by_name(run.trainer)

    class Trainer(base):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = run.epochs

        def initialize(self):
            super().initialize()
            if run.device == "cpu" and len(self.configuration_manager.patch_size) == 3:  # a quarter faster
                self.network.to(memory_format=torch.channels_last_3d)

        def configure_optimizers(self):
            optimizer, scheduler = super().configure_optimizers()
            optimizer.param_groups[0]["momentum"] = run.momentum
            return optimizer, scheduler

        def on_epoch_end(self):
            took = time.time() - self.logger.get_value("epoch_start_timestamps", step=-1)
            near = time.monotonic() + 2 * took > deadline  # twice: epochs differ, and the checkpoint takes a while
            if near:
                self.save_every = 1
            super().on_epoch_end()
            if near and self.current_epoch < self.num_epochs:
                raise OutOfTime

        def save_checkpoint(self, filename):  # nnU-Net writes in place: a kill would leave half a file
            super().save_checkpoint(filename + ".part")
            os.replace(filename + ".part", filename)

    if run.constants:
        Trainer.constants = replace(base.constants, **run.constants)
    Trainer.__name__ = run.name
    preprocessed = Path(nnUNet_preprocessed) / run.dataset
    set_seed(run.seed)  # for the initial weights; data augmented by worker processes differ all the same
    trainer = Trainer(
        {**load_json(str(preprocessed / f"{run.plans}.json")), "continue_training": False},
        run.configuration,
        run.fold if run.fold == "all" else int(run.fold),
        load_json(str(preprocessed / "dataset.json")),
        torch.device(run.device),
    )
    Trainer.__name__ = run.trainer  # the folder has the run's name, the checkpoint a trainer that nnU-Net finds
    trainer.initialize()
    return trainer


def set_seed(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


def predict(trainer, cases: dict[str, list[Path]], output: Path, mirroring: bool, deadline: float = math.inf) -> None:
    """Masks of all cases that have none yet, with the trainer's network as it is.

    Raises:
        OutOfTime: another case would take longer than there is time; one is always predicted.
    """
    predictor = nnUNetPredictor(
        use_mirroring=mirroring,
        device=trainer.device,
        perform_everything_on_device=trainer.device.type == "cuda",
        allow_tqdm=False,
    )
    trainer.set_deep_supervision_enabled(False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)  # without torch.compile's wrapper
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    output.mkdir(exist_ok=True)
    longest = 0.0
    for case, files in cases.items():
        target = output / f"{case}{trainer.dataset_json['file_ending']}"
        if target.exists():
            continue
        start = time.monotonic()
        if longest and start + 2 * longest > deadline:
            raise OutOfTime
        unfinished = output / f".{case}"  # renamed when whole
        predictor.predict_from_files_sequential([[str(f) for f in files]], [str(unfinished)], overwrite=True)
        unfinished.with_name(unfinished.name + trainer.dataset_json["file_ending"]).rename(target)
        longest = max(longest, time.monotonic() - start)


def dice(trainer, cases: dict[str, list[Path]], labels: Path) -> np.ndarray:
    """Dice (cases, foreground classes) of predictions made now."""
    output = Path(trainer.output_folder) / labels.name
    for old in output.glob("*"):
        old.unlink()
    predict(trainer, cases, output, mirroring=False)
    scores = []
    for case in cases:
        name = f"{case}{trainer.dataset_json['file_ending']}"
        metrics = compute_metrics(
            str(labels / name),
            str(output / name),
            trainer.plans_manager.image_reader_writer_class(),
            trainer.label_manager.foreground_labels,
        )["metrics"]
        scores.append([metrics[label]["Dice"] for label in trainer.label_manager.foreground_labels])
    return np.array(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name")
    parser.add_argument("-c", default="3d_fullres", help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-tr", default="nnUNetTrainerCrossMatch", help="trainer")
    parser.add_argument("-f", default="all", help="fold")
    parser.add_argument("--steps", type=int, default=3000, help=f"a multiple of {STEPS_PER_EPOCH}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants of the method")
    parser.add_argument("--tag", help="name of the run (default: made of the settings)")
    parser.add_argument("--hidden", type=int, default=40, help="unlabeled cases to score")
    parser.add_argument("--held-out", default="Ts", choices=["Ts", "Val"], help="score imagesTs or imagesVal")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("experiments.jsonl"))
    arguments = parser.parse_args()
    constants = {name: ast.literal_eval(value) for name, value in (item.split("=") for item in arguments.set)}
    tag = arguments.tag or "_".join([f"{arguments.steps}steps", *(s.replace("=", "") for s in arguments.set)])

    if arguments.device == "cpu":
        torch.set_num_threads(1)
    run = Run(
        dataset=maybe_convert_to_dataset_name(arguments.d),
        plans=arguments.p,
        configuration=arguments.c,
        trainer=arguments.tr,
        name=f"{arguments.tr}_{tag}_seed{arguments.seed}",
        seed=arguments.seed,
        epochs=arguments.steps // STEPS_PER_EPOCH,
        fold=arguments.f,
        constants=constants,
        momentum=arguments.momentum,
        device=arguments.device,
    )
    trainer = build_trainer(run)
    start = time.perf_counter()
    trainer.run_training()
    seconds = time.perf_counter() - start

    raw = Path(nnUNet_raw) / run.dataset
    held_out = group_channels(raw / f"images{arguments.held_out}", trainer.dataset_json)
    hidden = dict(list(list_unlabeled(raw, trainer.dataset_json).items())[: arguments.hidden])
    result = {
        "dataset": run.dataset,
        "trainer": run.trainer,
        "tag": tag,
        "seed": run.seed,
        "steps": arguments.steps,
        "momentum": run.momentum,
        "constants": constants,
        "seconds": round(seconds),
        "device": run.device,
        "torch": torch.__version__,
    }
    for key, cases, labels in (("hidden", hidden, "labelsUn"), ("test", held_out, f"labels{arguments.held_out}")):
        scores = dice(trainer, cases, raw / labels)
        result[key] = round(float(np.nanmean(scores)), 4)
        result[f"{key}_per_class"] = np.nanmean(scores, 0).round(4).tolist()
    with arguments.out.open("a") as f:
        f.write(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
