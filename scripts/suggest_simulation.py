"""Does suggest choose better scans to annotate than chance? Simulated where labels are only hidden (labelsUn).

The dataset (nnUNet_raw, planned, with labelsUn and imagesTs) is annotated again and again in copies below FOLDER: with
the scans that suggest chooses, with those of least confident pseudo-labels, and with random ones. Each copy is
preprocessed with the same plans, trained on all labeled cases and scored on the test scans. What is done is not done
again; each result is a line of FOLDER/simulation.jsonl.

example: python scripts/suggest_simulation.py FOLDER -d 4 -p nnUNetPlansSmall -tr nnUNetTrainer_5epochs -device cpu
"""

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.self_training.review import doubt


def run(*command: str | Path, base: Path | None = None) -> None:
    folders = {f"nnUNet_{name}": str(base / name) for name in ("raw", "preprocessed", "results")} if base else {}
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, **folders})


def choices(
    suggested: list[dict[str, str]], confident: dict[str, dict[str, float | None]], count: int, draws: int
) -> dict[str, list[str]]:
    """The scans of each arm.

    Args:
        suggested: rows of suggestions.csv.
        confident: share of confident voxels by class, of each pseudo-label.
    """
    cases = sorted(row["case"] for row in suggested)
    arms = {
        "suggest": [row["case"] for row in suggested if row["rank"]],
        "disagreement alone": sorted(cases, key=lambda case: -float(_row(suggested, case)["disagreement"]))[:count],
        "confidence alone": sorted(confident, key=lambda case: (-doubt(confident[case]), case))[:count],
    }
    return arms | {f"random {seed}": random.Random(seed).sample(cases, count) for seed in range(draws)}


def _row(rows: list[dict[str, str]], case: str) -> dict[str, str]:
    return next(row for row in rows if row["case"] == case)


def score(arguments: argparse.Namespace, dataset: str, base: Path, cases: list[str]) -> dict:
    """Annotate a copy, train it on all labeled cases, score the test scans."""
    raw, ending = (
        base / "raw" / dataset,
        json.loads((Path(nnUNet_raw) / dataset / "dataset.json").read_text())["file_ending"],
    )
    model = "-d", dataset, "-c", arguments.c, "-p", arguments.p
    if not (base / "annotated").exists():
        shutil.rmtree(base, ignore_errors=True)
        hide = shutil.ignore_patterns("suggestions", "pseudo_labels")
        shutil.copytree(Path(nnUNet_raw) / dataset, raw, ignore=hide)
        shutil.copytree(Path(nnUNet_preprocessed) / dataset, base / "preprocessed" / dataset)
        (base / "results").mkdir()
        (base / "masks").mkdir()
        for case in cases:
            shutil.copy(raw / "labelsUn" / f"{case}{ending}", base / "masks")
        run("nnUNetv2_crossmatch", "annotated", "-d", dataset, "-np", "1", base / "masks", base=base)
        number = dataset[len("Dataset") : len("Dataset") + 3]
        run("nnUNetv2_preprocess", "-d", number, "-plans_name", arguments.p, "-c", arguments.c, "-np", "1", base=base)
        (base / "annotated").touch()
    run("nnUNetv2_train", dataset, arguments.c, "all", "-tr", arguments.tr, "-p", arguments.p, "-device",
        arguments.device, base=base)  # fmt: skip
    run("nnUNetv2_predict", "-i", raw / "imagesTs", "-o", base / "predicted", *model, "-f", "all", "-tr", arguments.tr,
        "-device", arguments.device, "-npp", "1", "-nps", "1", base=base)  # fmt: skip
    reference, plans = raw / "labelsTs", base / "predicted" / "plans.json"
    run(
        "nnUNetv2_evaluate_folder",
        reference,
        base / "predicted",
        "-djfile",
        raw / "dataset.json",
        "-pfile",
        plans,
        base=base,
    )
    summary = json.loads((base / "predicted" / "summary.json").read_text())
    return {"dice": summary["foreground_mean"]["Dice"], "classes": {c: m["Dice"] for c, m in summary["mean"].items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("-d", required=True, help="dataset id or name")
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-tr", default="nnUNetTrainer", help="trains the teachers and the copies")
    parser.add_argument("-f", type=int, nargs="+", default=[0, 1, 2, 3], help="folds of the teachers")
    parser.add_argument("-n", type=int, default=10, help="scans to annotate")
    parser.add_argument("--draws", type=int, default=5, help="random choices")
    parser.add_argument("-device", default="cuda")
    arguments = parser.parse_args()

    dataset = maybe_convert_to_dataset_name(arguments.d)
    teachers = [RunFolder.of(dataset, arguments.tr, arguments.p, arguments.c, fold) for fold in arguments.f]
    for teacher in teachers:
        if not teacher.is_trained:
            run(*teacher.train_command(f"-device {arguments.device}").split())
    model = (
        "-d",
        dataset,
        "-c",
        arguments.c,
        "-p",
        arguments.p,
        "-tr",
        arguments.tr,
        "-device",
        arguments.device,
        "-np",
        "1",
    )
    run("nnUNetv2_crossmatch", "suggest", *model, "-n", str(arguments.n), "-f", *map(str, arguments.f))
    run("nnUNetv2_crossmatch", "pseudo-label", *model, "-f", str(arguments.f[0]))
    raw, name = Path(nnUNet_raw) / dataset, teachers[0].model_folder.name
    with (raw / "suggestions" / name / "suggestions.csv").open(encoding="utf-8") as file:
        suggested = list(csv.DictReader(file))
    record = json.loads((raw / "pseudo_labels" / name / teachers[0].path.name / "pseudo_labels.json").read_text())
    confident = {case: entry["confident"] for case, entry in record["cases"].items()}

    results = arguments.folder / "simulation.jsonl"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    done = {json.loads(line)["arm"] for line in results.read_text().splitlines()} if results.exists() else set()
    for arm, cases in choices(suggested, confident, arguments.n, arguments.draws).items():
        if arm not in done:
            result = score(arguments, dataset, arguments.folder / arm.replace(" ", "_"), cases)
            with results.open("a") as file:
                file.write(json.dumps({"arm": arm, "cases": cases, **result}) + "\n")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    drawn = [line["dice"] for line in lines if line["arm"].startswith("random")]
    for line in lines:
        print(f"{line['arm']:20}{line['dice']:.4f}")
    print(f"{'random, mean (sd)':20}{np.mean(drawn):.4f} ({np.std(drawn, ddof=1):.4f})")


if __name__ == "__main__":
    main()
