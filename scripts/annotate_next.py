"""Does ``suggest`` choose scans that teach more than any others? A simulation with hidden labels.

On a bench that ``gap.py prepare`` and ``gap.py pool`` made:

    python scripts/annotate_next.py teachers FOLDER BENCH   nnU-Net on each fold of the labeled scans
    python scripts/annotate_next.py choose FOLDER BENCH     suggest, the least confident scans, and random draws
    python scripts/annotate_next.py run FOLDER BENCH RULE SEED   the chosen scans get their labels; train, then score
    python scripts/annotate_next.py table FOLDER

All trainings have the same steps. Each scan is augmented 200 times by nnU-Net's loaders, once for all trainings, and
drawn equally often, so with more scans a training sees fewer repetitions, too. A seed is that of the last training: a
rule's choice is made once, by one training of the teachers, while each random draw is another choice. Random draws are
among all scans; the rules leave out those that ``check`` calls odd. On ACDC scans are chosen, not patients, of whom
each has two.
"""

import argparse
import csv
import json
import subprocess
import time
import zlib
from pathlib import Path

import gap
import numpy as np
import torch

FOLDS = (0, 1, 2)  # as many as three patients have
COUNTS = {"acdc-3": 6, "hippocampus-4": 10}  # scans to annotate
SAMPLES = 200  # of each scan
DRAWS = 5


class Samples:
    """Batches of drawn samples of ``cases``; what is not there yet is drawn by nnU-Net's loaders."""

    def __init__(self, trainer, folder: Path, cases: list[str], seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            if not (folder / f"{case}.pt").exists():
                _draw(trainer, case, folder / f"{case}.pt")
        self._samples = [torch.load(folder / f"{case}.pt") for case in cases]
        self._size = trainer.batch_size
        self._rng = np.random.default_rng(seed)

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        drawn = []
        for case in self._rng.integers(len(self._samples), size=self._size):
            samples = self._samples[case]
            drawn.append(samples[self._rng.integers(len(samples))])
        images, labels = zip(*drawn, strict=True)
        target = [torch.stack(level).to(torch.int16) for level in zip(*labels, strict=True)]
        return {"data": torch.stack(images).float(), "target": target}


def _draw(trainer, case: str, target: Path) -> None:
    trainer.do_split = lambda: ([case], [case])
    loader, _ = type(trainer).__mro__[1].get_dataloaders(trainer)
    np.random.seed(zlib.crc32(case.encode()))
    torch.manual_seed(zlib.crc32(case.encode()))
    samples: list = []
    while len(samples) < SAMPLES:
        batch = next(loader)
        for i, image in enumerate(batch["data"]):
            samples.append((image.half(), [level[i].to(torch.int8) for level in batch["target"]]))
    torch.save(samples, target.with_suffix(".incoming"))
    target.with_suffix(".incoming").rename(target)
    del trainer.do_split


def train(folder: Path, name: str, cases: list[str], seed: int, steps: int, output: Path):
    """nnU-Net on these scans of the bench's dataset with all labels."""
    trainer = gap.build(folder, name, "all-labels", seed, steps // gap.STEPS_PER_EPOCH, "cpu", {})
    output.mkdir(parents=True, exist_ok=True)
    trainer.output_folder, trainer.output_folder_base = str(output), str(output.parent)
    trainer.log_file = str(output / "log.txt")
    trainer.initialize()

    def loaders():
        samples = Samples(trainer, folder / "samples" / name, cases, seed)
        return samples, gap.Pool(folder / "pool" / name, "validation", seed)

    trainer.get_dataloaders = loaders
    trainer.run_training()
    return trainer


def roles_of(folder: Path, name: str) -> dict[str, list[str]]:
    dataset = gap.preprocessed_name(gap.BENCHES[name], folder, full=True)
    return json.loads((folder / "preprocessed" / dataset / "roles.json").read_text())


def model_folder(folder: Path, name: str) -> Path:
    bench = gap.BENCHES[name]
    dataset = gap.preprocessed_name(bench, folder, full=False)
    return folder / "results" / dataset / f"nnUNetTrainer__{gap.PLANS}__{bench.configuration}"


def teachers(folder: Path, name: str, steps: int) -> None:
    """Where ``suggest`` looks for them, with what nnU-Net's predictor needs beside them."""
    dataset = folder / "preprocessed" / gap.preprocessed_name(gap.BENCHES[name], folder, full=False)
    splits = json.loads((dataset / "splits_final.json").read_text())
    model = model_folder(folder, name)
    for fold in FOLDS:
        if (model / f"fold_{fold}" / "checkpoint_final.pth").exists():
            continue
        train(folder, name, splits[fold]["train"], fold, steps, model / f"fold_{fold}")
    for source, target in ((f"{gap.PLANS}.json", "plans.json"), ("dataset.json", "dataset.json")):
        (model / target).write_text((dataset / source).read_text())


def least_confident(folder: Path, name: str, cases: list[str]) -> list[str]:
    """By the mean highest probability where the folds together predict foreground; a scan without any comes last."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    predictor = nnUNetPredictor(0.5, False, False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model_folder(folder, name)), FOLDS, "checkpoint_final.pth")
    dataset = folder / "preprocessed" / gap.preprocessed_name(gap.BENCHES[name], folder, full=True)
    data = nnUNetDatasetBlosc2(str(dataset / predictor.configuration_manager.data_identifier), cases)
    confidence = {}
    for case in cases:
        image = torch.from_numpy(np.asarray(data.load_case(case)[0][:]))
        highest, predicted = predictor.predict_logits_from_preprocessed_data(image).float().softmax(0).max(0)
        confidence[case] = float(highest[predicted > 0].mean()) if predicted.any() else 1.0
    return sorted(cases, key=lambda case: confidence[case])


def choose(folder: Path, name: str) -> None:
    bench, count = gap.BENCHES[name], COUNTS[name]
    where = ["-d", str(bench.dataset), "-c", bench.configuration, "-p", gap.PLANS]
    suggest = ["nnUNetv2_crossmatch", "suggest", *where, "-f", *map(str, FOLDS), "--scans", str(count)]
    subprocess.run([*suggest, "-np", "1", "-device", "cpu"], check=True)
    raw = folder / "raw" / gap.preprocessed_name(bench, folder, full=False)
    with (raw / "suggestions" / model_folder(folder, name).name / "suggestions.csv").open() as table:
        rows = list(csv.DictReader(table))
    suggested = [row["case"] for row in rows if row["rank"]]
    usual = sorted(row["case"] for row in rows if not row["unlike the labeled scans"])
    by_disagreement = sorted(usual, key=lambda case: -next(float(r["disagreement"]) for r in rows if r["case"] == case))
    choices = {
        "none": [],
        "suggest": suggested,
        "confidence": least_confident(folder, name, usual)[:count],
        "disagreement": by_disagreement[:count],
    }
    rng = np.random.default_rng(0)
    everything = [row["case"] for row in rows]
    choices |= {f"random{i}": sorted(rng.choice(sorted(everything), count, replace=False)) for i in range(DRAWS)}
    (folder / f"choices_{name}.json").write_text(json.dumps(choices, indent=2))
    for rule, cases in choices.items():
        print(rule, *cases)


def run(folder: Path, name: str, rule: str, seed: int, steps: int) -> None:
    start = time.time()
    chosen = json.loads((folder / f"choices_{name}.json").read_text())[rule]
    roles = roles_of(folder, name)
    output = folder / "results" / f"annotate_next_{name}_{rule}_{seed}_{steps}"
    trainer = train(folder, name, roles["train"] + chosen, seed, steps, output)
    test = gap.score(trainer, trainer.network, folder, name, roles["test"])
    result = {"bench": name, "rule": rule, "seed": seed, "steps": steps, "chosen": chosen, "test": test}
    with (folder / "annotate_next.jsonl").open("a") as stream:
        stream.write(json.dumps(result | {"seconds": round(time.time() - start)}) + "\n")
    print(json.dumps(result))


def table(folder: Path) -> None:
    """Mean Dice of the test scans over classes: of each choice, over its seeds, and of each rule, over its choices."""
    found: dict[tuple, dict[str, dict[str, dict[int, float]]]] = {}
    for line in (folder / "annotate_next.jsonl").read_text().splitlines():
        result = json.loads(line)
        rules = found.setdefault((result["bench"], result["steps"]), {})
        choices = rules.setdefault(result["rule"].rstrip("0123456789"), {})
        choices.setdefault(" ".join(result["chosen"]), {})[result["seed"]] = float(np.mean(result["test"]))
    for (bench, steps), rules in found.items():
        print(f"{bench}, {steps} steps, {COUNTS[bench]} scans more")
        for rule, choices in rules.items():
            means = [np.mean(list(seeds.values())) for seeds in choices.values()]
            each = "; ".join(" ".join(f"{dice:.3f}" for dice in seeds.values()) for seeds in choices.values())
            print(f"  {rule:14} {np.mean(means):.3f} ({each})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("teachers", "choose", "run", "table"):
        sub = commands.add_parser(command)
        sub.add_argument("folder", type=Path)
        if command != "table":
            sub.add_argument("bench", choices=COUNTS)
        if command == "run":
            sub.add_argument("rule", help="none, suggest, confidence, disagreement or random0, random1, ...")
            sub.add_argument("seed", type=int)
        if command in ("teachers", "run"):
            sub.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    gap.use(folder)
    torch.set_num_threads(1)
    if arguments.command == "table":
        table(folder)
    elif arguments.command == "run":
        run(folder, arguments.bench, arguments.rule, arguments.seed, arguments.steps)
    elif arguments.command == "teachers":
        teachers(folder, arguments.bench, arguments.steps)
    else:
        choose(folder, arguments.bench)


if __name__ == "__main__":
    main()
