"""How much of the gap between few labels and all labels do the unlabeled scans close, at the same bill?

Four steps, each of which goes on where it was stopped:

    python scripts/gap.py prepare FOLDER DATA         convert, plan and preprocess the benches' scans
    python scripts/gap.py pool FOLDER BENCH           augmented patches, drawn once by nnU-Net's own loaders
    python scripts/gap.py run FOLDER BENCH ARM SEED   train, then score hidden and test scans (--bill, --set)
    python scripts/gap.py table FOLDER                every arm, and the share of the gap that it closes

A bill is counted in nnU-Net's own training steps (forward 1, backward 2): 12000 are 48 of its epochs. Every arm draws
its patches from the same pool. Scores are means of the foreground Dice at the plans' spacing, by nnU-Net's predictor
without mirroring. Choose by the hidden labels; look at the test scans once.
"""

import argparse
import ast
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

STEPS_PER_EPOCH, VALIDATION_STEPS = 250, 20
HIDDEN = 20  # unlabeled scans to choose by


@dataclass(frozen=True)
class Bench:
    """Small enough for a CPU; the network has as many levels as there are features, each half as fine."""

    dataset: int
    configuration: str
    convert: str
    spacing: str
    patch: str
    batch: int
    held_out: str | None  # nnU-Net's folder of test scans; None: the last of the unlabeled ones
    features: str = "16 32 64 128"


BENCHES = {
    "acdc-3": Bench(27, "2d", "acdc {}/ACDC --labeled 3", "10 2.2 2.2", "112 112", 6, "Val"),
    "hippocampus-4": Bench(
        4, "3d_fullres", "nifti {}/Hippocampus --labeled 4 --test 40", "1.5 1.5 1.5", "24 32 24", 2, "Ts"
    ),
    "la-8": Bench(18, "3d_fullres", "la {}/LA --labeled 8", "1.25 1.25 1.25", "48 64 64", 2, None),
}
PLANS = "nnUNetPlansSmall"
ARMS = {"supervised": "nnUNetTrainer", "all-labels": "nnUNetTrainer", "crossmatch": "nnUNetTrainerCrossMatch"}


def use(folder: Path) -> None:
    """nnU-Net reads these when it is imported."""
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ["nnUNet_n_proc_DA"] = "0"
    os.environ["nnUNet_compile"] = "f"


def preprocessed_name(bench: Bench, folder: Path, *, full: bool) -> str:
    number = bench.dataset + 500 * full
    return next((folder / "preprocessed").glob(f"Dataset{number:03d}_*")).name


def build(folder: Path, name: str, trainer: str, seed: int, epochs: int, device: str, constants: dict):
    """The trainer of a run, initialized, and its bench."""
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    bench, full = BENCHES[name], trainer == "all-labels"
    dataset = folder / "preprocessed" / preprocessed_name(bench, folder, full=full)
    base = recursive_find_trainer_class_by_name(ARMS.get(trainer, trainer))

    class Trainer(base):
        def get_dataloaders(self):
            super().get_dataloaders()  # the probe's patches
            pool = folder / "pool" / name
            if hasattr(self, "dataloader_unlabeled"):
                self.dataloader_unlabeled = Pool(pool, "unlabeled", seed)
            return Pool(pool, "all" if full else "labeled", seed), Pool(pool, "validation", seed)

    if constants:
        Trainer.constants = replace(base.constants, **constants)
    Trainer.__name__ = base.__name__
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    plans = {**load_json(str(dataset / f"{PLANS}.json")), "continue_training": False}
    made = Trainer(
        plans, bench.configuration, 0 if full else "all", load_json(str(dataset / "dataset.json")), torch.device(device)
    )
    made.num_epochs = epochs
    made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = STEPS_PER_EPOCH, VALIDATION_STEPS
    made.plot_network_architecture = lambda: None
    return made


class Pool:
    """Batches drawn before, in an order of the seed's, over and over."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self._files = sorted(folder.glob(f"{kind}_*.pt"))
        self._batches = [batch for file in self._files for batch in torch.load(file, mmap=True)]
        self._rng = np.random.default_rng(seed)
        self._order: list[int] = []

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        if not self._order:
            self._order = self._rng.permutation(len(self._batches)).tolist()
        batch = self._batches[self._order.pop()]
        target = batch["target"]
        target = [t.to(torch.int16) for t in target] if isinstance(target, list) else target.to(torch.int16)
        return {"data": batch["data"].float(), "target": target}


def draw(folder: Path, name: str, part: int, count: int) -> None:
    """One file of ``count`` batches of each kind, by nnU-Net's loaders without workers."""
    target = folder / "pool" / name
    target.mkdir(parents=True, exist_ok=True)

    def save(kind: str, loader, number: int) -> None:
        batches = []
        for _ in range(number):
            batch = next(loader)
            levels = batch["target"]
            small = [t.to(torch.int8) for t in levels] if isinstance(levels, list) else levels.to(torch.int8)
            batches.append({"data": batch["data"].half(), "target": small})
        torch.save(batches, target / f"{kind}_{part}.pt")

    for trainer in ("nnUNetTrainerCrossMatch", "all-labels"):
        made = build(folder, name, trainer, 1000 + part, 1, "cpu", {})
        made.initialize()
        cls = type(made).__mro__[1]
        if trainer == "all-labels":
            train, _ = cls.get_dataloaders(made)
            save("all", train, count)
            continue
        made._unlabeled_cases = made._prepare_unlabeled()
        train, validation = cls.get_dataloaders(made)
        save("labeled", train, count)
        save("unlabeled", made.dataloader_unlabeled, count)
        save("validation", validation, count // 5)


def score(trainer, network, folder: Path, name: str, cases: list[str], step: float = 0.5) -> list[float]:
    """Mean Dice of each foreground class; ``step`` is nnU-Net's, between the predictor's windows."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    bench = BENCHES[name]
    dataset = folder / "preprocessed" / preprocessed_name(bench, folder, full=True)
    data = nnUNetDatasetBlosc2(str(dataset / trainer.configuration_manager.data_identifier), cases)
    gpu = trainer.device.type == "cuda"
    predictor = nnUNetPredictor(
        step, False, False, perform_everything_on_device=gpu, device=trainer.device, allow_tqdm=False
    )
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    network.eval()
    network.decoder.deep_supervision = False
    dice = []
    for case in cases:
        image, label, *_ = data.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.asarray(image[:])))
        predicted, truth = logits.argmax(0).cpu().numpy(), np.asarray(label[:])[0]
        sizes = [((predicted == c).sum(), (truth == c).sum(), ((predicted == c) & (truth == c)).sum())
                 for c in trainer.label_manager.foreground_labels]  # fmt: skip
        dice.append([2 * both / (p + t) if p + t else np.nan for p, t, both in sizes])
    network.decoder.deep_supervision = True
    return np.nanmean(dice, 0).round(4).tolist()


def run(folder: Path, name: str, arm: str, seed: int, bill: int, device: str, constants: dict, tag: str) -> None:
    ours = arm not in ("supervised", "all-labels")
    # a joint step costs 3.5 thirds; the epochs of the supervised phase before it leave some of the bill over
    epochs = int(bill / (STEPS_PER_EPOCH * (3.5 / 3 if ours else 1)))
    folder_of_run = f"{arm}{tag}_{name}_{bill}_{seed}"
    trainer = build(folder, name, arm, seed, epochs, device, constants)
    trainer.output_folder = str(folder / "results" / folder_of_run)
    Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
    trainer.log_file = str(Path(trainer.output_folder) / "log.txt")
    trainer.disable_checkpointing = True
    roles = json.loads(
        (folder / "preprocessed" / preprocessed_name(BENCHES[name], folder, full=True) / "roles.json").read_text()
    )
    hidden, test = roles["hidden"], roles["test"]
    hidden = np.random.default_rng(7).permutation(hidden)[:HIDDEN].tolist()
    start, course = time.time(), []

    on_epoch_end = trainer.on_epoch_end

    def and_score() -> None:
        on_epoch_end()
        if trainer.current_epoch in (int(tenth * epochs / 10) for tenth in (2, 4, 6, 8)):  # has it stopped gaining?
            course.append(float(np.mean(score(trainer, trainer.network, folder, name, hidden, step=1.0))))
            print(folder_of_run, trainer.current_epoch, course, flush=True)

    trainer.on_epoch_end = and_score
    trainer.run_training()
    result = {"bench": name, "arm": arm + tag, "seed": seed, "bill": bill, "epochs": epochs, "constants": constants}
    result["course"] = course
    networks = {"": trainer.network}
    if ours and trainer.method.has_teacher:
        networks["_average"] = trainer.method.teacher.network
    for suffix, network in networks.items():
        for part, cases in (("hidden", hidden), ("test", test)):
            result[part + suffix] = score(trainer, network, folder, name, cases)
    if ours and trainer.method.waits:
        result["readiness"] = trainer.readiness.state()
    result |= {"seconds": round(time.time() - start), "device": device, "torch": torch.__version__}
    with (folder / "runs.jsonl").open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("pool", "run"):
        sub = commands.add_parser(command)
        sub.add_argument("folder", type=Path)
        sub.add_argument("bench", choices=BENCHES)
        if command == "pool":
            sub.add_argument("--parts", type=int, default=1)
            sub.add_argument("--part", type=int, help="this one alone")
            sub.add_argument("--batches", type=int, default=2000, help="of each kind, in all parts")
        else:
            sub.add_argument("arm", help="supervised, all-labels, crossmatch or the name of a trainer")
            sub.add_argument("seed", type=int)
            sub.add_argument("--bill", type=int, default=12000)
            sub.add_argument("--device", default="cpu")
            sub.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
            sub.add_argument("--tag", default="")
    arguments = parser.parse_args()
    use(arguments.folder.resolve())
    torch.set_num_threads(1)
    folder = arguments.folder.resolve()
    if arguments.command == "pool":
        if arguments.part is not None:
            draw(folder, arguments.bench, arguments.part, arguments.batches // arguments.parts)
        else:
            command = [sys.executable, __file__, *sys.argv[1:]]
            running = [subprocess.Popen([*command, "--part", str(part)]) for part in range(arguments.parts)]
            sys.exit(max(process.wait() for process in running))
    else:
        constants = {key: ast.literal_eval(value) for key, value in (item.split("=") for item in arguments.set)}
        run(
            folder,
            arguments.bench,
            arguments.arm,
            arguments.seed,
            arguments.bill,
            arguments.device,
            constants,
            arguments.tag,
        )


if __name__ == "__main__":
    main()
