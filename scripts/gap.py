"""How much of the gap between few labels and all labels do the unlabeled scans close, at the same bill?

Four steps:

    python scripts/gap.py prepare FOLDER BENCH DATA   convert, plan and preprocess
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
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

STEPS_PER_EPOCH, VALIDATION_STEPS = 250, 20
HIDDEN = 20  # unlabeled scans to choose by
HELD_OUT = 6  # of the unlabeled ones, where a bench has no test scans


@dataclass(frozen=True)
class Bench:
    """Small enough for a CPU; the network has as many levels as there are features, each half as fine."""

    dataset: int
    configuration: str
    source: str  # below DATA
    convert: str  # arguments of nnUNetv2_crossmatch convert: the kind, and options
    spacing: str
    patch: str
    batch: int
    held_out: str | None  # nnU-Net's folder of test scans; None: the last of the unlabeled ones
    features: str = "16 32 64 128"


BENCHES = {
    "acdc-3": Bench(27, "2d", "ACDC", "acdc --labeled 3", "10 2.2 2.2", "112 112", 6, "Val"),
    "hippocampus-4": Bench(
        4, "3d_fullres", "Hippocampus", "nifti --labeled 4 --test 40", "1.5 1.5 1.5", "24 32 24", 2, "Ts"
    ),
    "isic-40": Bench(50, "2d", "ISIC2018", "isic --labeled 40", "999 2 2", "128 128", 6, "Ts"),
    "la-8": Bench(18, "3d_fullres", "LA", "la --labeled 8", "1.25 1.25 1.25", "48 64 64", 2, None),
    "toy": Bench(99, "2d", "Toy", "nifti --labeled 2 --test 1", "1 1 1", "16 16", 2, "Ts", "4 8 8"),  # of gpu.sh
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


def prepare(folder: Path, name: str, data: Path) -> None:
    """The dataset of the bench, and one with the same plans and all labels, to train the ceiling and to score by."""
    bench = BENCHES[name]
    call = lambda line: subprocess.run(line, shell=True, check=True)  # noqa: E731, S602 (our own lines)
    d, c = bench.dataset, bench.configuration
    kind, _, options = bench.convert.partition(" ")
    call(f"nnUNetv2_crossmatch convert {kind} '{data / bench.source}' -d {d} {options}")
    (raw,) = (folder / "raw").glob(f"Dataset{d:03d}_*")
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    cases = lambda part: sorted(f.name.removesuffix(ending) for f in (raw / f"labels{part}").iterdir())  # noqa: E731
    held_out = bench.held_out
    if held_out is None:
        held_out = "Ts"
        for part in ("images", "labels"):
            (raw / f"{part}Ts").mkdir()
        for case in cases("Un")[-HELD_OUT:]:
            for file in (f"images{{}}/{case}_0000{ending}", f"labels{{}}/{case}{ending}"):
                (raw / file.format("Un")).rename(raw / file.format("Ts"))
    spacing = f"-overwrite_target_spacing {bench.spacing} -overwrite_plans_name nnUNetPlansBench"
    call(f"nnUNetv2_plan_and_preprocess -d {d} -c {c} -np 2 {spacing}")
    small = f"--features {bench.features} --patch {bench.patch} --batch {bench.batch}"
    call(f"'{sys.executable}' '{Path(__file__).with_name('small_plans.py')}' -d {d} -c {c} -p nnUNetPlansBench {small}")
    call(f"nnUNetv2_crossmatch preprocess -d {d} -c {c} -p {PLANS} -np 2")

    full = raw.with_name(f"Dataset{d + 500:03d}_{raw.name.partition('_')[2]}")
    roles = {"train": cases("Tr"), "hidden": cases("Un"), "test": cases(held_out)}
    listed = json.loads((raw / "unlabeled.json").read_text()) if (raw / "unlabeled.json").exists() else {}
    for part, role in (("Tr", "train"), ("Un", "hidden"), (held_out, "test")):
        for case in roles[role]:
            image = raw / f"images{part}" / f"{case}_0000{ending}"
            image = raw / listed[case]["images"][0] if role == "hidden" and listed else image
            for source, target in (
                (image, full / "imagesTr" / f"{case}_0000{ending}"),
                (raw / f"labels{part}" / f"{case}{ending}", full / "labelsTr" / f"{case}{ending}"),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
    dataset_json = json.loads((raw / "dataset.json").read_text())
    dataset_json["numTraining"] = sum(map(len, roles.values()))
    of_small, of_full = (folder / "preprocessed" / dataset.name for dataset in (raw, full))
    of_full.mkdir()
    shutil.copy(of_small / "dataset_fingerprint.json", of_full)
    plans = json.loads((of_small / f"{PLANS}.json").read_text()) | {"dataset_name": full.name}
    split = {"train": roles["train"] + roles["hidden"], "val": roles["test"]}
    for target, content in (
        (full / "dataset.json", dataset_json),
        (of_full / "dataset.json", dataset_json),
        (of_full / f"{PLANS}.json", plans),
        (of_full / "splits_final.json", [split]),
        (of_full / "roles.json", roles),
    ):
        target.write_text(json.dumps(content))
    call(f"nnUNetv2_preprocess -d {d + 500} -plans_name {PLANS} -c {c} -np 2")


def table(folder: Path) -> None:
    """Of each bench and bill: mean of the test scans over classes and seeds, and the share of the gap closed."""
    scores: dict[tuple, dict[str, dict[int, dict]]] = {}
    for line in (folder / "runs.jsonl").read_text().splitlines():
        result = json.loads(line)
        arms = scores.setdefault((result["bench"], result["bill"]), {})
        arms.setdefault(result["arm"], {})[result["seed"]] = result
    for (bench, bill), arms in scores.items():
        print(f"{bench}, a bill of {bill} steps")
        mean = {arm: np.mean([r["test"] for r in seeds.values()]) for arm, seeds in arms.items()}
        for arm, seeds in arms.items():
            hidden = [f"{np.mean(r['hidden']):.3f}" for r in seeds.values()]
            test = [f"{np.mean(r['test']):.3f}" for r in seeds.values()]
            line = f"  {arm:20} seeds {' '.join(map(str, seeds))}: hidden {' '.join(hidden)}, test {' '.join(test)}"
            if {"supervised", "all-labels"} <= mean.keys() and arm not in ("supervised", "all-labels"):
                closed = (mean[arm] - mean["supervised"]) / (mean["all-labels"] - mean["supervised"])
                line += f", gap closed {closed:.2f}"
            print(line)


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

    if constants.get("p_foreground"):
        sys.exit("p_foreground says nothing here: the pool's batches were drawn before any network.")
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


def run(
    folder: Path, name: str, arm: str, seed: int, bill: int, device: str, constants: dict, tag: str, cost: float
) -> None:
    ours = arm not in ("supervised", "all-labels")
    if arm in ARMS:
        cost = cost or 3.5 / 3
    elif not cost:
        sys.exit(f"--cost says what a step of {arm} costs; nnunetv2_crossmatch/methods/README.md has it (FLOPs).")
    # an epoch's look at the unlabeled patches is 16 forward passes; a supervised phase leaves some of the bill over
    epochs = int(bill / (STEPS_PER_EPOCH * cost + 16 / 3 if ours else STEPS_PER_EPOCH))
    folder_of_run = f"{arm}{tag}_{name}_{bill}_{seed}"
    trainer = build(folder, name, arm, seed, epochs, device, constants)
    trainer.output_folder = str(folder / "results" / folder_of_run)
    Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
    trainer.log_file = str(Path(trainer.output_folder) / "log.txt")
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
        result["readiness"] = trainer.phases.readiness.state()
    result |= {"seconds": round(time.time() - start), "device": device, "torch": torch.__version__}
    with (folder / "runs.jsonl").open("a") as stream:
        stream.write(json.dumps(result) + "\n")
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("prepare", "pool", "run", "table"):
        sub = commands.add_parser(command)
        sub.add_argument("folder", type=Path)
        if command != "table":
            sub.add_argument("bench", choices=BENCHES)
        if command == "prepare":
            sub.add_argument("data", type=Path, help="the folder of ACDC, Hippocampus and LA")
        elif command == "pool":
            sub.add_argument("--parts", type=int, default=1)
            sub.add_argument("--part", type=int, help="this one alone")
            sub.add_argument("--batches", type=int, default=2000, help="of each kind, in all parts")
        elif command == "run":
            sub.add_argument("arm", help="supervised, all-labels, crossmatch or the name of a trainer")
            sub.add_argument("seed", type=int)
            sub.add_argument("--bill", type=int, default=12000)
            sub.add_argument("--device", default="cpu")
            sub.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
            sub.add_argument("--tag", default="")
            sub.add_argument(
                "--cost", type=float, help="of a step over nnU-Net's; needed for other trainers than the default"
            )
    arguments = parser.parse_args()
    use(arguments.folder.resolve())
    torch.set_num_threads(1)
    folder = arguments.folder.resolve()
    if arguments.command == "prepare":
        os.environ["nnUNet_n_proc_DA"] = "1"  # planning divides by it
        prepare(folder, arguments.bench, arguments.data.resolve())
    elif arguments.command == "table":
        table(folder)
    elif arguments.command == "pool":
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
            arguments.cost,
        )


if __name__ == "__main__":
    main()
