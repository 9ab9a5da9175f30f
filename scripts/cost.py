"""FLOPs and peak saved-for-backward memory of one training step, over those of a supervised step.

Runs real steps of the real trainers on the CPU, on preprocessed data, with the network of the plans.
E and D are one encoder and one decoder pass; (12E + 22D)/(3E + 3D) is what CrossMatch needs at least:
4 encoder and 7 decoder passes with gradient, and a teacher decoding without. ACTION's stage iii needs 7/3 of
a supervised step: two passes with gradient and a teacher's without. What a loss costs is the difference to a
step with its weight set to 0.
example: python scripts/cost.py -d 4 -c 3d_fullres -tr nnUNetTrainerCrossMatch nnUNetTrainerCrossMatchEMA
         python scripts/cost.py -d 4 -c 3d_fullres -tr nnUNetTrainerACTION --at 0.5 --set lambda_anco=0
"""

import argparse
import ast
import contextlib
import io
from dataclasses import replace
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.utils.flop_counter import FlopCounterMode


class SavedForBackward:
    """Peak bytes that autograd holds at one time; a storage counts once, parameters not at all."""

    class _Held:
        def __init__(self, meter: "SavedForBackward", tensor: torch.Tensor):
            self.meter, self.tensor = meter, tensor
            self.key, self.size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            meter.hold(self.key, self.size)

        def __del__(self):
            self.meter.release(self.key, self.size)

    def __init__(self, network: torch.nn.Module):
        self._parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
        self._count: dict[int, int] = {}
        self._now = self.peak = 0

    def hold(self, key: int, size: int) -> None:
        self._count[key] = self._count.get(key, 0) + 1
        if self._count[key] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)

    def release(self, key: int, size: int) -> None:
        self._count[key] -= 1
        if self._count[key] == 0:
            self._now -= size

    def _pack(self, tensor: torch.Tensor):
        return tensor if tensor.untyped_storage().data_ptr() in self._parameters else self._Held(self, tensor)

    def __enter__(self) -> "SavedForBackward":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            self._pack, lambda held: held.tensor if isinstance(held, self._Held) else held
        )
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._hooks.__exit__(*exception)


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
    with SavedForBackward(trainer.network) as saved:
        trainer.train_step(batch)
    step = flops(lambda: trainer.train_step(batch))
    with torch.no_grad():
        encoder = flops(lambda: trainer.network.encoder(batch["data"]))
        skips = trainer.network.encoder(batch["data"])
        decoder = flops(lambda: trainer.network.decoder(skips))
    return step, saved.peak, encoder, decoder


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
    print(f"{'trainer':40} {'GFLOP':>10} {'ratio':>7} {'MiB saved':>10} {'ratio':>7}")
    print(f"{'nnUNetTrainer':40} {step / 1e9:10.2f} {1:7.3f} {memory / 2**20:10.1f} {1:7.3f}")
    for name in arguments.tr:
        own_step, own_memory, _, _ = measure(name, arguments)
        print(
            f"{name:40} {own_step / 1e9:10.2f} {own_step / step:7.3f} "
            f"{own_memory / 2**20:10.1f} {own_memory / memory:7.3f}"
        )


if __name__ == "__main__":
    main()
