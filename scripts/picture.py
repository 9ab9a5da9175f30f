"""One held-out scan side by side: the scan, then each trainer's prediction, with the truth as outlines.

Takes what scripts/quickstart.py leaves. The scan shown is the one whose difference in Dice between the first two
trainers is the median of all, so neither trainer is shown at its best; the slice is the one with most foreground.

example: python scripts/picture.py quickstart/synthetic/held_out example.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

COLORS = ("#e69f00", "#0072b2", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # of the classes; told apart by everybody
TRUTH = "#00ff66"


def case_dice(predictions: Path) -> dict[str, float]:
    """Mean foreground Dice of each case, from what nnUNetv2_evaluate_folder wrote."""
    cases = json.loads((predictions / "summary.json").read_text())["metric_per_case"]
    return {
        Path(case["prediction_file"]).name: float(
            np.nanmean([of_class["Dice"] for of_class in case["metrics"].values()])
        )
        for case in cases
    }


def median_case(dice: list[dict[str, float]]) -> str:
    """The case whose difference between the first two is the lower median of all."""
    first, second, *_ = dice
    order = sorted(first, key=lambda case: second[case] - first[case])
    return order[(len(order) - 1) // 2]


def draw(held_out: Path, trainers: list[str], file: Path) -> str:
    """Write the picture; returns the case.

    Args:
        held_out: has images, labels, and a folder of predictions with summary.json for each of ``trainers``.
    """
    dice = {trainer: case_dice(held_out / trainer) for trainer in trainers}
    case = median_case(list(dice.values()))
    names = json.loads((held_out / trainers[0] / "dataset.json").read_text())["labels"]
    classes = {name: value for name, value in names.items() if value}

    def read(folder: str, name: str) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.ReadImage(str(held_out / folder / name)))

    image, truth = read("images", case.replace(".nii", "_0000.nii")), read("labels", case)
    where = int((truth > 0).sum((1, 2)).argmax())
    low, high = np.percentile(image[where], (1, 99))
    panels = {f"scan {case.partition('.')[0]}": np.zeros_like(truth)}
    panels |= {f"{trainer}, Dice {dice[trainer][case]:.3f}": read(trainer, case) for trainer in trainers}

    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.8), layout="constrained")
    for axis, (title, mask) in zip(axes, panels.items(), strict=True):
        axis.imshow(image[where], cmap="gray", vmin=low, vmax=high)
        for color, value in zip(COLORS, classes.values(), strict=False):
            predicted = np.where(mask[where] == value, 1.0, np.nan)
            axis.imshow(predicted, cmap=ListedColormap([color]), alpha=0.45, interpolation="nearest")
            if axis is not axes[0] and (truth[where] == value).any():
                axis.contour(truth[where] == value, [0.5], colors=[TRUTH], linewidths=1.4)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    legend = [Patch(color=color, alpha=0.6, label=name) for color, name in zip(COLORS, classes, strict=False)]
    legend.append(Line2D([], [], color=TRUTH, label="truth"))
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("held_out", type=Path, help="images, labels and a folder of predictions for each trainer")
    parser.add_argument("file", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    trainers = sorted(folder.parent.name for folder in arguments.held_out.glob("*/summary.json"))
    if len(trainers) < 2:
        parser.error(f"{arguments.held_out} has scored predictions of {len(trainers)} trainers; two are needed")
    trainers.sort(key=lambda name: not name.startswith("nnUNetTrainer_"))  # plain nnU-Net first
    case = draw(arguments.held_out, trainers, arguments.file)
    print(f"{arguments.file} shows {case}")


if __name__ == "__main__":
    main()
