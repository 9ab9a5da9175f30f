"""Kill a training at random instants (SIGKILL), go on with what is left, and count what went wrong.

The training saves after each epoch, so that many instants lie within the writing of a checkpoint. After each kill
every checkpoint file has to be readable, and the furthest one no earlier than before; the next life goes on from
it as --c does. A training that reached its end starts again. Exit code 1 if anything was lost.

example: python scripts/kill.py -d 4 -c 3d_fullres -p nnUNetPlansSmall -tr nnUNetTrainerCrossMatch --kills 40
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import device

from nnunetv2_crossmatch.trainers import semi_supervised
from nnunetv2_crossmatch.trainers.checkpoints import CheckpointError, read_checkpoint


def train(arguments: argparse.Namespace, results: Path) -> None:
    """A life of the training: 8 epochs of 4 steps."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    preprocessed = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.d)
    plans = {**load_json(str(preprocessed / f"{arguments.p}.json")), "continue_training": True}
    cls = recursive_find_trainer_class_by_name(arguments.tr)
    trainer = cls(plans, arguments.c, "all", load_json(str(preprocessed / "dataset.json")), device("cpu"))
    trainer.output_folder = str(results)
    trainer.num_epochs, trainer.save_every = 8, 1
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 4, 1
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    MetaLogger.plot_progress_png = semi_supervised.plot_curves = lambda *_: None  # they take longer than all the rest
    trainer.run_training()


def epochs(results: Path) -> dict[str, int]:
    """How far each checkpoint is.

    Raises:
        CheckpointError: one cannot be read.
    """
    return {file.name: read_checkpoint(file)["current_epoch"] for file in sorted(results.glob("checkpoint_*.pth"))}


def kill_often(arguments: argparse.Namespace, results: Path) -> dict[str, int]:
    """Counts of what happened."""
    draw = random.Random(arguments.seed)
    counts = {
        "kills": 0,
        "while a checkpoint was written": 0,
        "lives that went on from a checkpoint": 0,
        "trainings that reached their end": 0,
        "failures": 0,
    }
    reached, longest = 0, None  # the first life ends by itself: it looks at the scans, the others find that done
    while counts["kills"] < arguments.kills:
        life = multiprocessing.get_context("fork").Process(target=train, args=(arguments, results))
        life.start()
        life.join(longest and draw.uniform(0, longest))
        longest = arguments.seconds
        killed = life.is_alive()
        life.kill()
        life.join()
        counts["kills"] += killed
        counts["while a checkpoint was written"] += killed and any(results.glob("*.tmp"))
        try:
            now = max(epochs(results).values(), default=0)
            if now < reached:
                raise CheckpointError(f"went back from epoch {reached} to {now}")
            counts["lives that went on from a checkpoint"] += 0 < reached < now
            if not killed and life.exitcode != 0:
                raise CheckpointError(f"could not go on after epoch {now}, see the log in {results}")
        except CheckpointError as e:
            print(e)
            counts["failures"] += 1
            now = 0
            shutil.rmtree(results)
        reached = now
        if not killed and reached:
            counts["trainings that reached their end"] += 1
            reached = 0
            shutil.rmtree(results)
        results.mkdir(parents=True, exist_ok=True)
    return counts


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name, planned and preprocessed")
    parser.add_argument("-c", default="3d_fullres", help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-tr", default="nnUNetTrainerCrossMatch", help="trainer")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0, help="the longest life")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    results = Path(nnUNet_results) / "killed"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    counts = kill_often(arguments, results)
    shutil.rmtree(results)
    print("\n".join(f"{count:4} {what}" for what, count in counts.items()))
    sys.exit(1 if counts["failures"] else 0)


if __name__ == "__main__":
    main()
