"""The pictures of the report, each as text to put into a page: SVG for plots, PNG for scans."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunetv2_crossmatch.comparison.compare import Comparison, Model
from nnunetv2_crossmatch.comparison.paired import FEWEST, by_unit, class_columns, scores
from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES
from nnunetv2_crossmatch.nnunet.images import read_images

COLORS = ("#7f7f7f", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_CLASS_COLORS = ("#e6194b", "#ffe119", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6")
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same page for the same runs
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}


def class_colors(count: int) -> list[str]:
    """One for each class, none twice."""
    if count <= len(_CLASS_COLORS):
        return list(_CLASS_COLORS[:count])
    return [to_hex(hsv_to_rgb((i / count, 1 - 0.5 * (i % 2), 1)).tolist()) for i in range(count)]


def plot_differences(comparison: Comparison) -> str:
    """Each unit's difference in Dice to the reference, per class, with mean and interval unless they are too few."""
    titles = comparison.titles
    columns = class_columns(comparison.models[0].evaluation)
    others = comparison.models[1:]
    with plt.style.context(["default", _STYLE]):
        height = 0.5 + 0.42 * len(others) * len(titles) + 0.25 * len(titles)
        figure, axis = plt.subplots(figsize=(9, max(2.2, height)), layout="constrained")
        rng = np.random.default_rng(0)
        row, ticks = 0.0, []
        for name, title in titles.items():
            start = row
            for i, model in enumerate(others, 1):
                color = COLORS[i % len(COLORS)]
                points = 100 * by_unit(comparison.dice_change(model)[:, columns[name]], comparison.units).mean(1)
                jitter = rng.uniform(-0.13, 0.13, len(points))
                size = 8 if comparison.few else 4
                axis.plot(points, row + jitter, "o", ms=size, color=color, alpha=0.45, mew=0, label=model.trainer)
                if not comparison.few:
                    difference = comparison.differences[model.trainer][name]["dice"]
                    axis.plot([100 * difference.low, 100 * difference.high], [row, row], color=color, lw=3)
                    axis.plot(100 * difference.mean, row, "D", color=color, ms=7, mec="white", label=model.trainer)
                row += 1
            ticks.append(((start + row - 1) / 2, title))
            row += 0.6
        axis.axvline(0, color="black", lw=1)
        axis.set_yticks(*zip(*ticks, strict=True))
        axis.invert_yaxis()
        axis.set_xlabel(f"difference in Dice points to {comparison.models[0].trainer}; right is better")
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique.keys(), loc="outside upper left", frameon=False, ncols=3)
        return _svg(figure)


def plot_distributions(comparison: Comparison) -> str:
    """Dice of every case, per class and model: a box with its points; the points alone where they are few."""
    classes = comparison.models[0].evaluation.classes
    with plt.style.context(["default", _STYLE]):
        width = min(14, max(9, 1.2 + len(classes) * (0.55 * len(comparison.models) + 0.5)))
        figure, axis = plt.subplots(figsize=(width, 4), layout="constrained")
        rng = np.random.default_rng(0)
        step = len(comparison.models) + 1
        for i, model in enumerate(comparison.models):
            color = COLORS[i % len(COLORS)]
            for j, dices in enumerate(100 * scores(model.evaluation)[:, :, METRICS.index("dice")].T):
                place = j * step + i
                paint = {"color": color}
                if len(dices) >= FEWEST:
                    axis.boxplot(
                        dices, positions=[place], widths=0.6, showfliers=False,
                        medianprops={**paint, "lw": 2}, boxprops=paint, whiskerprops=paint, capprops=paint,
                    )  # fmt: skip
                axis.plot(place + rng.uniform(-0.15, 0.15, len(dices)), dices, "o", ms=3, mew=0, alpha=0.5, color=color)
            axis.plot([], [], color=color, lw=3, label=model.trainer)
        axis.set_xticks([j * step + (len(comparison.models) - 1) / 2 for j in range(len(classes))], classes)
        if len(classes) > 5:
            axis.tick_params(axis="x", rotation=60)
        axis.set_ylabel("Dice [%]")
        figure.legend(loc="outside upper left", frameon=False, ncols=3)
        return _svg(figure)


def plot_gain(comparison: Comparison) -> str:
    """Difference in mean Dice to the reference over GPU hours, a point for each model, with its interval."""
    with plt.style.context(["default", _STYLE]):
        figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
        axis.axhline(0, color="black", lw=1)
        for i, model in enumerate(comparison.models):
            color = COLORS[i % len(COLORS)]
            mean = 0.0
            if i:
                difference = comparison.differences[model.trainer][MEAN_OF_CLASSES]["dice"]
                mean = 100 * difference.mean
                axis.plot([model.hours] * 2, [100 * difference.low, 100 * difference.high], color=color, lw=2)
            axis.plot(model.hours, mean, "D" if i else "o", color=color, ms=7, mec="white", label=model.trainer)
        axis.set_xlim(0, 1.1 * max(model.hours for model in comparison.models) or None)
        axis.set_xlabel("GPU hours, all folds")
        axis.set_ylabel(f"difference in Dice points\nto {comparison.models[0].trainer}")
        axis.grid(alpha=0.25)
        figure.legend(loc="outside upper left", frameon=False, ncols=3)
        return _svg(figure)


def plot_curves(models: Sequence[Model], names: dict[str, str]) -> str:
    """Curves of every run over the hours of its training, a panel for each of ``names`` (curve: title).

    Runs of one trainer have one color. Hours make epochs of different lengths comparable. "" if no run has
    any of them.
    """
    shown = {n: t for n, t in names.items() if any(run.log.curve(n)[0] for model in models for run in model.runs)}
    if not shown:
        return ""
    with plt.style.context(["default", _STYLE]):
        figure, axes = plt.subplots(
            len(shown), 1, figsize=(9, 0.4 + 2.7 * len(shown)), sharex=True, squeeze=False, layout="constrained"
        )
        for axis, (name, title) in zip(axes[:, 0], shown.items(), strict=True):
            for i, model in enumerate(models):
                for run in model.runs:
                    epochs, values = run.log.curve(name)
                    seconds = np.cumsum([run.log.epochs[epoch].get("seconds", 0) for epoch in sorted(run.log.epochs)])
                    hours = dict(zip(sorted(run.log.epochs), seconds / 3600, strict=True))
                    color = COLORS[i % len(COLORS)]
                    marker = "o" if len(epochs) == 1 else None  # a line of one point is invisible
                    axis.plot([hours[epoch] for epoch in epochs], values, color=color, alpha=0.8, lw=1.2, marker=marker)
            axis.set_title(title, loc="left")
            axis.grid(alpha=0.25)
        axes[-1, 0].set_xlabel("hours of training")
        for i, model in enumerate(models):
            axes[0, 0].plot([], [], color=COLORS[i % len(COLORS)], lw=3, label=model.trainer)
        figure.legend(loc="outside upper left", frameon=False, ncols=3)
        return _svg(figure)


@dataclass(frozen=True)
class Scan:
    """One case to look at: arrays (z, y, x), spacing in mm, and a title for each mask, the truth first."""

    image: NDArray
    masks: dict[str, NDArray]
    spacing: Sequence[float]


def draw_scan(scan: Scan, shown: int, classes: dict[str, tuple[int, ...]]) -> tuple[str, str]:
    """Image and masks in the slice on which the reference and model number ``shown`` differ most in what is right.

    Of the slices with a true object, if there is one.

    Returns:
        The picture, and which slice it is.
    """
    masks = list(scan.masks.values())
    truth, reference, other = masks[0], masks[1], masks[1 + shown]
    differs = (reference == truth) != (other == truth)
    there = np.isin(truth, [value for values in classes.values() for value in values])
    axis = int(np.argmax(scan.spacing)) if scan.image.shape[0] > 1 else 0
    others = tuple(a for a in range(3) if a != axis)
    with_truth = differs.sum(others) * there.any(others)
    weight = next((of for of in (with_truth, differs.sum(others)) if of.any()), there.sum(others))
    where = int(weight.argmax())
    gray = scan.image.take(where, axis).astype(float)
    aspect = scan.spacing[others[0]] / scan.spacing[others[1]]
    columns = {"image": np.zeros_like(masks[0]), **scan.masks}
    ratio = gray.shape[0] * aspect / gray.shape[1]
    with plt.style.context(["default", _STYLE]):
        figure, axes = plt.subplots(
            1, len(columns), figsize=(2.6 * len(columns), 0.45 + 2.6 * min(ratio, 2)), layout="constrained"
        )
        for plot, (title, mask) in zip(axes, columns.items(), strict=True):
            _overlay(plot, gray, mask.take(where, axis), classes, aspect)
            plot.set_title(title, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
        plt.close(figure)
    picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return picture, f"slice {where + 1} of {scan.image.shape[axis]}"


def _overlay(plot: Axes, gray: NDArray, mask: NDArray, classes: dict[str, tuple[int, ...]], aspect: float) -> None:
    low, high = np.percentile(gray, (1, 99))
    plot.imshow(gray, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest")
    for color, values in zip(class_colors(len(classes)), classes.values(), strict=True):
        inside = np.isin(mask, values)
        if inside.any():
            shade = np.where(inside, 1.0, np.nan)
            plot.imshow(shade, cmap=ListedColormap([color]), alpha=0.3, aspect=aspect, interpolation="nearest")
            if min(inside.shape) > 1:
                plot.contour(inside, [0.5], colors=[color], linewidths=1.0)
    plot.set_axis_off()


def read_scan(comparison: Comparison, case: str, image: Path, reader: BaseReaderWriter) -> Scan:
    """Image, truth and the first seeds' predictions of a case; titles with their mean Dice."""
    data, properties = read_images([image], reader)
    masks = {"truth": reader.read_seg(str(comparison.truths[case]))[0][0]}
    for model in comparison.models:
        first, seed = model.seeds[0], ", seed 1" if len(model.seeds) > 1 else ""
        dice = scores(first)[first.cases.index(case), :, METRICS.index("dice")].mean()
        mask = reader.read_seg(str(model.predictions[case]))[0][0]
        masks[f"{model.trainer}\nDice {100 * dice:.1f}{seed}"] = mask
    return Scan(data[0], masks, properties["spacing"])


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
