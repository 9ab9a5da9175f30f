"""What a training step costs: time, FLOPs, peak memory, over stock nnU-Net's in the same process.

Steps of the real trainers, taken in turn, so that a machine that slows down slows them all; time and ratio are
medians with quartiles. FLOPs are counted without torch.compile. Memory is weights, momentum and a method's own state,
and the peak of what a step adds to them: in the allocator on CUDA, all tensors alive at one time on the CPU. What a
loss costs is the difference to a step with its weight set to 0. FLOPs and memory are those of one step, also of a
method that draws what it computes.

E and D are one encoder and one decoder pass; CrossMatchPaper needs (12E + 22D)/(3E + 3D) of a supervised step at least:
4 encoder and 7 decoder passes with gradient, and a teacher decoding without.

With --device meta everything is on paper: no data, no GPU, and what a step would need on one, in mixed precision as
nnU-Net trains there.

With --epochs every trainer runs whole epochs by itself instead, with its data loaders: how long they take, how long
a step waits for data, and what a labeled and an unlabeled batch cost a worker.

example: python scripts/benchmark.py -d 4 -tr nnUNetTrainerCrossMatch nnUNetTrainerCrossMatchPaper
         python scripts/benchmark.py -d 4 -tr nnUNetTrainerACTION --at 0.5 --set lambda_anco=0 --steps 0
         python scripts/benchmark.py -d 4 -tr nnUNetTrainerCrossMatch --device cuda --synthetic --out gpu.json
         python scripts/benchmark.py -d 4 -tr nnUNetTrainerCrossMatchPaper --device meta
"""

import argparse
import ast
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from unittest.mock import patch

import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from nnunetv2_crossmatch.nnunet.loaders import labeled_loader

STOCK = "nnUNetTrainer"
LOADERS = {"dataloader_train", "dataloader_unlabeled"}
AUTOCAST = {  # the functions of a step that CUDA's autocast runs in another precision, of those that hold memory
    torch.float16: ((functional, "conv2d conv3d conv_transpose2d conv_transpose3d linear"),),
    torch.float32: (
        (functional, "softmax log_softmax cross_entropy binary_cross_entropy_with_logits normalize"),
        (torch, "softmax"),
        (torch.Tensor, "softmax"),
    ),
}
ON_DEVICE_AUGMENTATION = ("strong_view", "strong_mix", "draw_boxes", "paste", "draw_channel_masks")


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


class Stopwatch:
    """Seconds by name; a name within another counts for the outer one alone."""

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._device = device
        self._running = False

    def around(self, name: str, function: Callable) -> Callable:
        def timed(*args, **kwargs):
            if self._running:
                return function(*args, **kwargs)
            self._running = True
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += self._now() - start
                self._running = False

        return timed

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class TimedLoader:
    """A data loader and the seconds it let somebody wait."""

    def __init__(self, loader):
        self.loader = loader
        self.seconds = 0.0

    def __next__(self):
        start = time.perf_counter()
        batch = next(self.loader)
        self.seconds += time.perf_counter() - start
        return batch


@contextlib.contextmanager
def on_paper() -> Iterator[None]:
    """Steps on torch's device ``meta``, whose tensors have shapes and no values, as they would be on CUDA.

    Where the host asks for numbers it gets ones. Autocast does not know the device.
    """

    def in_precision(function: Callable, dtype: torch.dtype) -> Callable:
        def cast(*args, **kwargs):
            of_dtype = lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor  # noqa: E731
            args, kwargs = tree_map_only(torch.Tensor, of_dtype, (args, kwargs))
            return function(*args, **kwargs)

        return cast

    with contextlib.ExitStack() as patches:
        for dtype, rooms in AUTOCAST.items():
            for room, names in rooms:
                for name in names.split():
                    patches.enter_context(patch.object(room, name, in_precision(getattr(room, name), dtype)))
        patches.enter_context(patch.object(torch.Tensor, "cpu", lambda t: torch.ones(tuple(t.shape), dtype=t.dtype)))
        patches.enter_context(patch.object(torch.Tensor, "__bool__", lambda t: True))
        beta = torch.distributions.Beta
        patches.enter_context(patch.object(beta, "sample", lambda drawn: torch.empty_like(drawn.concentration1)))
        yield


def trainer_class(name: str, constants: dict) -> type:
    cls = recursive_find_trainer_class_by_name(name)
    if constants and hasattr(cls, "constants"):
        cls = type(name, (cls,), {"constants": replace(cls.constants, **constants)})
    return cls


def build(name: str, arguments: argparse.Namespace, *, compiled: bool = True):
    """A trainer in the middle of its training, ready for a step."""
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.d)
    plans = {**load_json(str(folder / f"{arguments.p}.json")), "continue_training": False}
    environment = {} if compiled else {"nnUNet_compile": "f"}
    with patch.dict(os.environ, environment):
        cls = trainer_class(name, arguments.set)
        device = torch.device(arguments.device)
        trainer = cls(plans, arguments.c, "all", load_json(str(folder / "dataset.json")), device)
        if arguments.synthetic or arguments.device == "meta":
            trainer.initialize()
            labeled, unlabeled = made_up(trainer)
            trainer.dataloader_train, trainer.dataloader_unlabeled = repeat(labeled), repeat(unlabeled)
            if hasattr(trainer, "method"):
                trainer._take_halves()
        else:
            trainer.on_train_start()
        trainer.current_epoch = int(trainer.num_epochs * arguments.at)
        trainer.network.train()
        trainer._step_in_epoch = 0
        if hasattr(trainer, "method") and trainer.method.waits:
            readiness = trainer.phases.readiness
            readiness.started, readiness.taught = 0, list(readiness.names)
            trainer.phases.tell_method()
    return trainer


def made_up(trainer) -> tuple[dict, dict]:
    """A labeled and an unlabeled batch of noise."""
    plan, labels = trainer.configuration_manager, trainer.label_manager
    size = (trainer.batch_size, trainer.num_input_channels, *plan.patch_size)
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else [[1] * len(plan.patch_size)]
    channels, values = (len(labels.foreground_regions), 2) if labels.has_regions else (1, len(labels.all_labels))
    target = []
    for scale in scales:
        shape = [round(size * factor) for size, factor in zip(plan.patch_size, scale, strict=True)]
        target.append(torch.randint(0, values, (trainer.batch_size, channels, *shape), dtype=torch.int16))
    labeled = {"data": torch.randn(size), "target": target if trainer.enable_deep_supervision else target[0]}
    return labeled, {"data": torch.randn(size), "target": torch.zeros(size[0], 1, *size[2:], dtype=torch.int16)}


def take_step(trainer) -> None:
    trainer.train_step(next(trainer.dataloader_train))


def flops(function: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return counter.get_total_flops()


def peak_memory(trainer) -> int:
    """Bytes within a step beyond those before it."""
    if trainer.device.type == "cuda":
        trainer.optimizer.zero_grad(set_to_none=True)  # those of the step before: a step's own count
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        take_step(trainer)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveMemory() as memory:
        take_step(trainer)
    return memory.peak


def held_memory(trainer) -> int:
    """Bytes held from step to step: weights, the optimizer's state, a method's own."""
    modules = [trainer.network, *([trainer.method] if hasattr(trainer, "method") else [])]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values()]
    return sum(t.nbytes for t in {id(t): t for t in tensors if isinstance(t, torch.Tensor)}.values())


def cost(name: str, arguments: argparse.Namespace) -> dict:
    """FLOPs and peak bytes of a step, FLOPs of one encoder and one decoder pass."""
    trainer = build(name, arguments, compiled=False)
    take_step(trainer)
    step_bytes = peak_memory(trainer)
    result = {
        "peak_bytes": held_memory(trainer) + step_bytes,
        "step_bytes": step_bytes,
        "flops": flops(lambda: take_step(trainer)),
    }
    network = getattr(trainer, "_plain_network", trainer.network)
    image = next(trainer.dataloader_train)["data"].to(trainer.device)
    with torch.no_grad():
        result["encoder_flops"] = flops(lambda: network.encoder(image))
        skips = network.encoder(image)
        result["decoder_flops"] = flops(lambda: network.decoder(skips))
    return result


def shares(trainer, steps: int) -> dict[str, float]:
    """Which share of a step goes where; what is left is forward."""
    watch, patches = Stopwatch(trainer.device), contextlib.ExitStack()
    with patches:
        patches.enter_context(patch("torch.autograd.backward", watch.around("backward", torch.autograd.backward)))
        optimizer = trainer.optimizer
        patches.enter_context(patch.object(optimizer, "step", watch.around("optimizer", optimizer.step)))
        for module in [m for name, m in sys.modules.items() if name.startswith("nnunetv2_crossmatch.")]:
            for name in ON_DEVICE_AUGMENTATION:
                if function := vars(module).get(name):
                    patches.enter_context(patch.object(module, name, watch.around("augmentation", function)))
        waiting = {name: TimedLoader(vars(trainer)[name]) for name in LOADERS & vars(trainer).keys()}
        vars(trainer).update(waiting)
        start = watch._now()
        for _ in range(steps):
            take_step(trainer)
        total = watch._now() - start
    seconds = {**watch.seconds, "waiting": sum(loader.seconds for loader in waiting.values())}
    seconds["forward"] = total - sum(seconds.values())
    return {name: value / total for name, value in sorted(seconds.items())}


def step_times(trainers: dict, steps: int, warm_up: int) -> dict[str, list[float]]:
    """Seconds of each step, the trainers in turn."""
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for i in range(warm_up + steps):
        for name, trainer in trainers.items():
            batch = next(trainer.dataloader_train)
            watch = Stopwatch(trainer.device)
            watch.around("step", trainer.train_step)(batch)
            if i >= warm_up:
                times[name].append(watch.seconds["step"])
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def epoch_times(name: str, arguments: argparse.Namespace) -> dict:
    """Whole epochs through nnU-Net's loop; the first one, which starts everything, does not count."""
    cls, waits, epochs = trainer_class(name, arguments.set), [], []

    class Watched(cls):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs = arguments.epochs + 1
            self.disable_checkpointing = True
            self.ready_at = 0  # of a trainer that waits: its epochs are of self-training

        def on_train_start(self):
            super().on_train_start()
            for name in LOADERS & vars(self).keys():
                setattr(self, name, TimedLoader(vars(self)[name]))

        def on_train_end(self):
            for name in LOADERS & vars(self).keys():  # nnU-Net ends the workers of loaders that it knows
                setattr(self, name, vars(self)[name].loader)
            super().on_train_end()

        def _waited(self) -> float:
            return sum(vars(self)[name].seconds for name in LOADERS & vars(self).keys())

        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            self._before = (time.perf_counter(), self._waited())

        def on_train_epoch_end(self, outputs):
            start, waited = self._before
            epochs.append(time.perf_counter() - start)
            waits.append(self._waited() - waited)
            super().on_train_epoch_end(outputs)

    Watched.__name__ = name
    folder = Path(nnUNet_preprocessed) / maybe_convert_to_dataset_name(arguments.d)
    plans = {**load_json(str(folder / f"{arguments.p}.json")), "continue_training": False}
    dataset_json = load_json(str(folder / "dataset.json"))
    trainer = Watched(plans, arguments.c, "all", dataset_json, torch.device(arguments.device))
    trainer.run_training()
    steps = trainer.num_iterations_per_epoch
    loaders = {name: labeled_loader(vars(trainer)[name]) for name in sorted(LOADERS & vars(trainer).keys())}
    return {
        "epoch_seconds": spread(epochs[1:]),
        "step_seconds": spread([seconds / steps for seconds in epochs[1:]]),
        "waiting_share": sum(waits[1:]) / sum(epochs[1:]),
        "batch_seconds": {name: spread(batch_times(loader)) for name, loader in loaders.items()},
    }


def batch_times(loader: nnUNetDataLoader, batches: int = 20) -> list[float]:
    """Seconds to make each batch in this process, on one thread as nnU-Net's loader does."""
    times = []
    for _ in range(batches):
        start = time.perf_counter()
        next(loader)
        times.append(time.perf_counter() - start)
    return times


def machine(arguments: argparse.Namespace) -> dict:
    cuda = arguments.device.startswith("cuda")
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(arguments.device) if cuda else f"{arguments.device}, {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: version(package) for package in ("nnunetv2", "nnunetv2-crossmatch")},
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "workers": os.environ.get("nnUNet_n_proc_DA"),
    }


def run(arguments: argparse.Namespace) -> dict[str, dict]:
    names = [STOCK, *(name for name in arguments.tr if name != STOCK)]
    if arguments.epochs:
        return {name: epoch_times(name, arguments) for name in names}
    if arguments.device == "meta":
        with on_paper():
            return {name: cost(name, arguments) for name in names}
    results = {name: cost(name, arguments) for name in names}
    if arguments.steps:
        trainers = {name: build(name, arguments) for name in names}
        times = step_times(trainers, arguments.steps, arguments.warm_up)
        for name, trainer in trainers.items():
            ratios = [own / stock for own, stock in zip(times[name], times[STOCK], strict=True)]
            results[name] |= {"step_seconds": spread(times[name]), "time_ratio": spread(ratios)}
            results[name]["shares"] = shares(trainer, max(2, arguments.steps // 4))
            if arguments.device.startswith("cuda"):  # compiled, if the others were
                results[name]["timed_step_bytes"] = peak_memory(trainer)
    return results


def rows(results: dict[str, dict]) -> Iterator[str]:
    stock = results[STOCK]
    if "epoch_seconds" in stock:
        yield f"{'trainer':32} {'epoch s':>9} {'step s':>9} {'ratio':>7} {'waiting':>8}  batch s: labeled, unlabeled"
        for name, result in results.items():
            step = result["step_seconds"]["median"]
            yield (
                f"{name:32} {result['epoch_seconds']['median']:9.2f} {step:9.4f} "
                f"{step / stock['step_seconds']['median']:7.3f} {result['waiting_share']:8.1%}  "
                + ", ".join(f"{times['median']:.3f}" for times in result["batch_seconds"].values())
            )
        return
    e, d = stock["encoder_flops"], stock["decoder_flops"]
    floor = (12 * e + 22 * d) / (3 * e + 3 * d)
    yield f"encoder pass {e / 1e9:.3f} GFLOP, decoder pass {d / 1e9:.3f} GFLOP, CrossMatchPaper's floor {floor:.3f}"
    timed = "step_seconds" in stock
    yield f"{'trainer':32} {'GFLOP':>10} {'ratio':>7} {'MiB':>9} {'ratio':>7}" + (
        f" {'step s':>9} {'ratio':>7}  {'quartiles':15} share of the step" if timed else ""
    )
    for name, result in results.items():
        row = (
            f"{name:32} {result['flops'] / 1e9:10.2f} {result['flops'] / stock['flops']:7.3f} "
            f"{result['peak_bytes'] / 2**20:9.1f} {result['peak_bytes'] / stock['peak_bytes']:7.3f}"
        )
        if timed:
            ratio = result["time_ratio"]
            row += (
                f" {result['step_seconds']['median']:9.4f} {ratio['median']:7.3f}"
                f"  {ratio['lower_quartile']:.3f} to {ratio['upper_quartile']:.3f}  "
                + ", ".join(f"{part} {share:.1%}" for part, share in result["shares"].items())
            )
        yield row


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id or name, planned and preprocessed")
    parser.add_argument("-c", default="3d_fullres", help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-tr", nargs="+", default=["nnUNetTrainerCrossMatch"], help=f"trainers, beside {STOCK}")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or meta (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps to time; 0 for FLOPs and memory alone")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before that, which compile and choose algorithms")
    parser.add_argument("--epochs", type=int, default=0, help="time so many whole epochs instead")
    parser.add_argument("--synthetic", action="store_true", help="noise instead of data: the plans are enough")
    parser.add_argument("--at", type=float, default=0.5, help="share of the training that is done, below 1")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="constants of the methods")
    parser.add_argument("--out", type=Path, help="write everything as JSON, with hardware and versions")
    parsed = parser.parse_args(arguments)
    if parsed.device == "meta" and parsed.epochs:
        parser.error("on paper nothing takes time: without --epochs")
    parsed.set = {key: ast.literal_eval(value) for key, value in (item.split("=") for item in parsed.set)}
    return parsed


def main() -> None:
    arguments = parse()
    with contextlib.redirect_stdout(io.StringIO()):  # the trainers' log
        results = run(arguments)
    print("\n".join(rows(results)))
    if arguments.out:
        arguments.out.write_text(json.dumps({**machine(arguments), "trainers": results}, indent=2))


if __name__ == "__main__":
    main()
