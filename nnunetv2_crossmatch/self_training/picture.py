"""One picture of a pseudo-label, to see at a glance whether it is worth correcting."""

from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

CONTOURS = ("cyan", "red", "lime", "magenta", "dodgerblue", "orangered", "springgreen", "violet")
_IGNORED = ListedColormap(["yellow"])


def draw_picture(
    file: Path, title: str, image: np.ndarray, label: np.ndarray, predicted: np.ndarray, ignore: int, spacing: list
) -> None:
    """Write a PNG: slices through the largest foreground, contours of the label, ignored voxels shaded.

    Args:
        image: (z, y, x), as are ``label`` and ``predicted``, the label without ignored voxels.
        spacing: of the three axes in mm.
    """
    foreground = predicted > 0
    axes = [0] if label.shape[0] == 1 else [0, 1, 2]
    figure = Figure(figsize=(4.5 * len(axes), 5), layout="constrained")
    colors = {c: CONTOURS[(c - 1) % len(CONTOURS)] for c in np.unique(label).tolist() if c not in (0, ignore)}
    for plot, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        others = tuple(a for a in range(3) if a != axis)
        where = int(foreground.sum(others).argmax()) if foreground.any() else label.shape[axis] // 2
        gray, shown = (array.take(where, axis).astype(float) for array in (image, label))
        aspect = spacing[others[0]] / spacing[others[1]]
        low, high = np.percentile(gray, (1, 99))
        plot.imshow(gray, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        ignored = np.where(shown == ignore, 1.0, np.nan)
        plot.imshow(ignored, cmap=_IGNORED, alpha=0.35, aspect=aspect, interpolation="nearest")
        for c, color in colors.items():
            if (shown == c).any() and min(shown.shape) > 1:
                plot.contour(shown == c, [0.5], colors=[color], linewidths=1.2)
        plot.set_title(f"axis {axis}, slice {where}", fontsize=9)
        plot.set_axis_off()
    lines = [Line2D([], [], color=color, label=str(c)) for c, color in colors.items()]
    shading = Line2D([], [], color="yellow", alpha=0.5, linewidth=6, label="ignored")
    figure.legend(handles=[*lines, shading], loc="outside lower center", ncols=8, fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=100)
