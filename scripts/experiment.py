"""One training run with chosen constants and seed, scored on held-out and on hidden labels.

Trains through the real trainer in this process, on the CPU or GPU, then predicts with nnU-Net's predictor
(no test-time mirroring) and appends one JSON line: Dice of the test cases (imagesTs/labelsTs) and of some
unlabelled cases whose labels are hidden in labelsUn. Choose constants by the latter, report the former.

example: python scripts/experiment.py -d 4 -p nnUNetPlansSmall --seed 0 --steps 3000 --set threshold=0.75
"""

import argparse
import ast
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.preprocessing.listing import group_channels, list_unlabeled

STEPS_PER_EPOCH = 250


def make_trainer(arguments: argparse.Namespace, constants: dict) -> type:
    """The named trainer with seed, length, constants and momentum of this run; its folder carries the tag."""
    base = recursive_find_trainer_class_by_name(arguments.tr)

    class Run(base):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = arguments.steps // STEPS_PER_EPOCH

        def initialize(self):
            super().initialize()
            if len(self.configuration_manager.patch_size) == 3:  # a quarter faster on a CPU
                self.network.to(memory_format=torch.channels_last_3d)

        def configure_optimizers(self):
            optimizer, scheduler = super().configure_optimizers()
            optimizer.param_groups[0]["momentum"] = arguments.momentum
            return optimizer, scheduler

    if constants:
        Run.constants = replace(base.constants, **constants)
    Run.__name__ = f"{arguments.tr}_{arguments.tag}_seed{arguments.seed}"
    return Run


def dice(trainer, cases: dict[str, list[Path]], labels: Path) -> dict[str, list[float]]:
    """Dice of every foreground class, case by case."""
    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
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
    output = Path(trainer.output_folder) / labels.name
    output.mkdir(exist_ok=True)
    scores = {}
    for case, files in cases.items():
        ending = trainer.dataset_json["file_ending"]
        target = output / f"{case}{ending}"
        predictor.predict_from_files_sequential(
            [[str(f) for f in files]], [str(target.with_name(case))], overwrite=True
        )
        metrics = compute_metrics(
            str(labels / target.name),
            str(target),
            trainer.plans_manager.image_reader_writer_class(),
            trainer.label_manager.foreground_labels,
        )["metrics"]
        scores[case] = [metrics[label]["Dice"] for label in trainer.label_manager.foreground_labels]
    return scores


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
    parser.add_argument("--hidden", type=int, default=40, help="unlabelled cases to score")
    parser.add_argument("--held-out", default="Ts", choices=["Ts", "Val"], help="score imagesTs or imagesVal")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("experiments.jsonl"))
    arguments = parser.parse_args()
    constants = {name: ast.literal_eval(value) for name, value in (item.split("=") for item in arguments.set)}
    arguments.tag = arguments.tag or "_".join([f"{arguments.steps}steps", *(s.replace("=", "") for s in arguments.set)])

    np.random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    name = maybe_convert_to_dataset_name(arguments.d)
    raw, preprocessed = Path(nnUNet_raw) / name, Path(nnUNet_preprocessed) / name
    dataset_json = load_json(str(preprocessed / "dataset.json"))
    trainer = make_trainer(arguments, constants)(
        {**load_json(str(preprocessed / f"{arguments.p}.json")), "continue_training": False},
        arguments.c,
        arguments.f if arguments.f == "all" else int(arguments.f),
        dataset_json,
        torch.device(arguments.device),
    )
    start = time.perf_counter()
    trainer.run_training()
    seconds = time.perf_counter() - start

    held_out = group_channels(raw / f"images{arguments.held_out}", dataset_json["file_ending"])
    hidden = dict(list(list_unlabeled(raw, dataset_json).items())[: arguments.hidden])
    result = {
        "dataset": name,
        "trainer": arguments.tr,
        "tag": arguments.tag,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "momentum": arguments.momentum,
        "constants": constants,
        "seconds": round(seconds),
        "device": arguments.device,
        "torch": torch.__version__,
    }
    for key, cases in (("hidden", hidden), ("test", held_out)):
        scores = np.array(
            list(
                dice(trainer, cases, raw / ("labelsUn" if key == "hidden" else f"labels{arguments.held_out}")).values()
            )
        )
        result[key] = round(float(np.nanmean(scores)), 4)
        result[f"{key}_per_class"] = np.nanmean(scores, 0).round(4).tolist()
    with arguments.out.open("a") as f:
        f.write(json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
