"""FLOPs and peak memory of one training step, over those of a supervised step.

Runs real steps of the real trainers on the CPU, on preprocessed data, with the network of the plans.
E and D are one encoder and one decoder pass; (12E + 22D)/(3E + 3D) is what CrossMatch needs at least:
4 encoder and 7 decoder passes with gradient, and a teacher decoding without. ACTION's stage iii needs 7/3 of
a supervised step, two passes with gradient and a teacher's without, and the finest levels of one pass again.
What a loss costs is the difference to a step with its weight set to 0. Memory is that of all tensors alive at
one time, gradients and what an operation needs for the moment among them; parameters, momentum and the
method's own state are not.
example: python scripts/cost.py -d 4 -c 3d_fullres -tr nnUNetTrainerCrossMatch nnUNetTrainerCrossMatchEMA
         python scripts/cost.py -d 4 -c 3d_fullres -tr nnUNetTrainerACTION --at 0.5 --set lambda_anco=0
"""

import argparse
import ast
import contextlib
import io
import weakref
from dataclasses import replace
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Peak bytes of all tensors made within it that are alive at one time; a storage counts once."""

    def __init__(self):
        super().__init__()
        self._sizes = WeakIdKeyDictionary()
        self._now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._hold, result)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._sizes:
            self._sizes[storage] = size = storage.nbytes()
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._now -= size


def start(name: str, arguments: argparse.Namespace):
    """A trainer in the middle of its training, with its data loaders running in this process."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.d)
    plans = {**load_json(str(folder / f"{arguments.p}.json")), "continue_training": False}
    with contextlib.redirect_stdout(io.StringIO()):
        cls = recursive_find_trainer_class_by_name(name)
        if arguments.set and hasattr(cls, "constants"):
            constants = {key: ast.literal_eval(value) for key, value in (item.split("=") for item in arguments.set)}
            cls = type(name, (cls,), {"constants": replace(cls.constants, **constants)})
        trainer = cls(plans, arguments.c, "all", load_json(str(folder / "dataset.json")), torch.device("cpu"))
        trainer.on_train_start()
        trainer.current_epoch = int(trainer.num_epochs * arguments.at)
        trainer.on_train_epoch_start()
    return trainer


def flops(function) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return counter.get_total_flops()


def measure(name: str, arguments: argparse.Namespace) -> tuple[int, int, int, int]:
    """FLOPs and peak bytes of a step; FLOPs of one encoder and one decoder pass over the batch."""
    trainer = start(name, arguments)
    batch = next(trainer.dataloader_train)
    trainer.train_step(batch)
    with LiveMemory() as memory:
        trainer.train_step(batch)
    step = flops(lambda: trainer.train_step(batch))
    with torch.no_grad():
        encoder = flops(lambda: trainer.network.encoder(batch["data"]))
        skips = trainer.network.encoder(batch["data"])
        decoder = flops(lambda: trainer.network.decoder(skips))
    return step, memory.peak, encoder, decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name, planned and preprocessed")
    parser.add_argument("-c", default="3d_fullres", help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-tr", nargs="+", default=["nnUNetTrainerCrossMatch"], help="trainers")
    parser.add_argument("--at", type=float, default=0.5, help="share of the training that is done, below 1")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants of the method")
    arguments = parser.parse_args()

    step, memory, encoder, decoder = measure("nnUNetTrainer", arguments)
    floor = (12 * encoder + 22 * decoder) / (3 * encoder + 3 * decoder)
    print(f"encoder pass {encoder / 1e9:.3f} GFLOP, decoder pass {decoder / 1e9:.3f} GFLOP, floor {floor:.3f}")
    print(f"{'trainer':40} {'GFLOP':>10} {'ratio':>7} {'MiB peak':>10} {'ratio':>7}")
    print(f"{'nnUNetTrainer':40} {step / 1e9:10.2f} {1:7.3f} {memory / 2**20:10.1f} {1:7.3f}")
    for name in arguments.tr:
        own_step, own_memory, _, _ = measure(name, arguments)
        print(
            f"{name:40} {own_step / 1e9:10.2f} {own_step / step:7.3f} "
            f"{own_memory / 2**20:10.1f} {own_memory / memory:7.3f}"
        )


if __name__ == "__main__":
    main()
