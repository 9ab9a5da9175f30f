"""Data, plans, two trainings, predictions, scores and a picture, all with the installed commands."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from picture import draw

BIN = Path(sys.executable).parent
PLANS = "nnUNetPlansSmall"


@dataclass(frozen=True)
class Recipe:
    """Small enough for two CPU cores; drop ``features``, ``patch`` and ``spacing`` for a real training."""

    dataset_id: str
    configuration: str
    features: tuple[int, ...]
    patch: tuple[int, ...]
    batch: int
    epochs: int  # 1, 5 or 10: what stock nnU-Net has
    convert: tuple[str, ...] = ()
    spacing: tuple[float, ...] = ()  # mm, coarser than planned


RECIPES = {
    "synthetic": Recipe("900", "3d_fullres", (8, 16, 32), (16, 32, 32), 2, 5),
    "hippocampus": Recipe(
        "904",
        "3d_fullres",
        (8, 16, 32, 64),
        (24, 32, 24),
        2,
        5,
        ("nifti", "--labeled", "4", "--test", "40"),
        (1.5, 1.5, 1.5),
    ),
    "la": Recipe("908", "3d_fullres", (8, 16, 32), (16, 40, 40), 2, 5, ("la", "--labeled", "8"), (3.0, 2.0, 2.0)),
    "acdc": Recipe("927", "2d", (8, 16, 32, 64), (96, 96), 4, 5, ("acdc", "--labeled", "3")),
}


def run(*command: str | Path) -> None:
    print("\n$ " + shlex.join(map(str, command)), flush=True)
    log = Path(os.environ["nnUNet_results"]).parent / "quickstart.log"
    with log.open("a") as f:
        f.write(f"$ {shlex.join(map(str, command))}\n")
        f.flush()
        if subprocess.run(
            [str(BIN / command[0]), *map(str, command[1:])], stdout=f, stderr=subprocess.STDOUT
        ).returncode:
            sys.exit(f"this failed; the end of {log} says why:\n{''.join(log.read_text().splitlines(True)[-15:])}")


def make_synthetic(raw: Path) -> None:
    """Noisy scans of an organ with a core; contrast and size vary, so three labels do not show everything."""
    rng = np.random.default_rng(0)
    folder = raw / "Dataset900_Synthetic"
    for part, prefix, count in (("Tr", "labeled", 3), ("Un", "unlabeled", 24), ("Ts", "test", 8)):
        for i in range(count):
            image, label = _organ(rng)
            _write(image, folder / f"images{part}" / f"{prefix}_{i:02d}_0000.nii.gz")
            if part != "Un":
                _write(label, folder / f"labels{part}" / f"{prefix}_{i:02d}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "organ": 1, "core": 2},
                "numTraining": 3,
                "file_ending": ".nii.gz",
            },
            indent=2,
        )
    )


def _organ(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    shape = (24, 40, 40)
    grid = np.indices(shape) - np.reshape(np.array(shape) / 2 + rng.uniform(-4, 4, 3), (3, 1, 1, 1))
    radii = rng.uniform((5, 8, 8), (8, 13, 13)).reshape(3, 1, 1, 1)
    distance = np.sqrt(((grid / radii) ** 2).sum(0)) + 0.15 * np.sin(grid[1] / rng.uniform(2, 4)) * np.cos(grid[2] / 3)
    label = (distance < 1).astype(np.uint8) + (distance < rng.uniform(0.4, 0.6))
    organ, core = rng.uniform(0.5, 1.2), rng.uniform(1.3, 2.2)
    bias = 1 + 0.3 * np.sin(np.indices(shape)[2] / rng.uniform(8, 20) + rng.uniform(0, 6))
    image = np.choose(label, (0.0, organ, core)) * bias + rng.normal(0, rng.uniform(0.2, 0.5), shape)
    for _ in range(4):  # things as bright as the organ that are not the organ
        corner = rng.integers(0, np.array(shape) - 4)
        spot = tuple(slice(c, c + 4) for c in corner)
        image[spot] = np.where(label[spot] == 0, image[spot] + organ, image[spot])
    return (100 * image + 500).astype(np.float32), label


def _write(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(file))


def held_out(dataset: Path, target: Path, most: int = 10) -> Path:
    """Copy up to ten scans to predict and their labels: test scans, or validation ones, or hidden unlabeled ones."""
    part = next(p for p in ("Ts", "Val", "Un") if (dataset / f"labels{p}").is_dir())
    if part == "Un":
        print("no test scans here: scoring unlabeled scans, whose labels training never saw")
    for label in sorted((dataset / f"labels{part}").iterdir())[:most]:
        image = dataset / f"images{part}" / label.name.replace(".nii.gz", "_0000.nii.gz")
        for file, kind in ((image, "images"), (label, "labels")):
            (target / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / kind)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("quickstart"))
    parser.add_argument("--data", nargs=2, metavar=("KIND", "PATH"), help="hippocampus, la or acdc, and its folder")
    arguments = parser.parse_args()
    kind, source = arguments.data or ("synthetic", None)
    if kind not in RECIPES:
        parser.error(f"--data {kind}: choose hippocampus, la or acdc")
    recipe = RECIPES[kind]

    base = arguments.folder.resolve() / kind
    if source is not None and Path(source).resolve().is_relative_to(base):
        parser.error(f"{source} lies in {base}, which is made again; move it first")
    shutil.rmtree(base, ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(base / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2"}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    d, c = recipe.dataset_id, recipe.configuration

    if source is None:
        make_synthetic(base / "raw")
    else:
        run("nnUNetv2_crossmatch", "convert", recipe.convert[0], source, "-d", d, *recipe.convert[1:])
    dataset = next((base / "raw").glob("Dataset*"))
    spacing = ("-overwrite_target_spacing", *map(str, recipe.spacing), "-overwrite_plans_name", "nnUNetPlansCoarse")
    run(
        "nnUNetv2_plan_and_preprocess", "-d", d, "-c", c, "-np", "2", "-npfp", "2", *(spacing if recipe.spacing else ())
    )
    run(
        "python",
        Path(__file__).parent / "small_plans.py",
        "-d",
        d,
        "-c",
        c,
        "-o",
        PLANS,
        "-p",
        "nnUNetPlansCoarse" if recipe.spacing else "nnUNetPlans",
        "--features",
        *map(str, recipe.features),
        "--patch",
        *map(str, recipe.patch),
        "--batch",
        str(recipe.batch),
    )
    run("nnUNetv2_crossmatch", "preprocess", "-d", d, "-c", c, "-p", PLANS, "-np", "2")

    target, scores = held_out(dataset, base / "held_out"), {}
    for trainer in (f"nnUNetTrainerCrossMatch_{recipe.epochs}epochs", f"nnUNetTrainer_{recipe.epochs}epochs"):
        run("nnUNetv2_train", d, c, "all", "-tr", trainer, "-p", PLANS, "-device", device)
        run(
            "nnUNetv2_predict",
            "-i",
            target / "images",
            "-o",
            target / trainer,
            "-d",
            d,
            "-c",
            c,
            "-f",
            "all",
            "-tr",
            trainer,
            "-p",
            PLANS,
            "-device",
            device,
            "-npp",
            "2",
            "-nps",
            "2",
        )
        run(
            "nnUNetv2_evaluate_folder",
            target / "labels",
            target / trainer,
            "-djfile",
            target / trainer / "dataset.json",
            "-pfile",
            target / trainer / "plans.json",
            "-np",
            "2",
        )
        scores[trainer] = json.loads((target / trainer / "summary.json").read_text())["foreground_mean"]["Dice"]
    draw(target, list(reversed(scores)), base / "scan.png")  # plain nnU-Net first
    print(f"\nmean Dice of the classes [%], {len(list((target / 'labels').iterdir()))} held-out scans, one run each:")
    for trainer, score in scores.items():
        print(f"  {trainer:35} {100 * score:.1f}")
    print(f"picture: {base / 'scan.png'}")


if __name__ == "__main__":
    main()
