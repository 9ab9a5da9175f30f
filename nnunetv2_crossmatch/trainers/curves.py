"""Curves of the unlabeled part: gathered over an epoch, logged by nnU-Net, drawn beside its progress.png."""

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from itertools import zip_longest
from math import isfinite
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import Tensor

from nnunetv2_crossmatch.nnunet.logger import PREFIX, logged_curves
from nnunetv2_crossmatch.utilities.files import write_text

BACKGROUND = "background"
SHOWN = 3  # classes in a line of the log
# name in the file: nnU-Net's
NNUNET = {"train_loss": "train_losses", "val_loss": "val_losses", "dice": "dice_per_class_or_region", "lr": "lrs"}
WITH_DICE = ("loss_supervised", "loss_joint", "loss_supervised_second")  # nnU-Net's subtracts the Dice
LOSSES = {  # in plain words; a paper's own name stands behind them
    "supervised": "nnU-Net's own, labeled scans",
    "supervised_second": "nnU-Net's own, second network",
    "joint": "labeled and unlabeled scans",
    "labeled": "labeled part of the mixture",
    "unlabeled": "unlabeled part of the mixture",
    "ip": "changed image",
    "tkd": "dropped features",
    "dkd": "dropped features of a changed image",
    "strong": "changed image",
    "fp": "dropped features",
    "consistency": "network against its average",
    "cps": "two networks against each other",
    "global": "similarity of scans",
    "local": "similarity of regions",
    "unsup": "confident labels",
    "anco": "contrast of classes",
    "aaco": "adaptive contrast of classes",
}


class EpochRatios:
    """Sums numerators and denominators on the device and divides once, when the epoch ends."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, ratios: Mapping[str, tuple[Tensor | float, Tensor | float]], device: torch.device) -> None:
        """Each value is (numerator, denominator), scalars or one value per class; what is not finite is left out."""
        for name, ratio in ratios.items():
            # full() and not as_tensor(): no copy from the host
            numerator, denominator = (
                v.detach().float() if isinstance(v, Tensor) else torch.full((), v, device=device) for v in ratio
            )
            pair = torch.stack(torch.broadcast_tensors(numerator, denominator))
            pair = torch.where(pair.isfinite().all(0), pair, 0)
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pop(self) -> dict[str, float | list[float]]:
        """The ratios of the epoch (nan where nothing was counted); starts the next one."""
        sums, self._sums = self._sums, {}
        ratios = {}
        for name, pair in sums.items():
            numerator, denominator = pair.cpu().numpy()
            with np.errstate(invalid="ignore", divide="ignore"):
                ratios[name] = np.where(denominator > 0, numerator / denominator, np.nan).tolist()
        return ratios


def gradient_ratios(logger: MetaLogger) -> list[float]:
    """Gradient norm of the unlabeled losses over the labeled loss's, for each logged epoch that had both."""
    norms = [logged_curves(logger).get(f"gradient_norm_{part}", []) for part in ("unlabeled", "labeled")]
    return [over / under for over, under in zip(*norms, strict=False) if over >= 0 and under > 0]  # not nan


def not_labeled(shares: float | list[float] | None, classes: Sequence[str], taught: Tensor | None) -> str:
    """Foreground classes of which no voxel passed the threshold in an epoch, in words; empty if there is none.

    Args:
        shares: the curve ``kept_share``, a value for each of ``classes``, nan where nothing was predicted.
        taught: bool (classes,); the others are left out on purpose. None: all.
    """
    if not isinstance(shares, list):
        return ""
    asked = [True] * len(classes) if taught is None else taught.tolist()
    kept = {name: share for name, share, ask in zip(classes, shares, asked, strict=True) if ask and name != BACKGROUND}
    missing = [name for name, share in kept.items() if not share > 0]
    if not missing:
        return ""
    collapsed = ", so the unlabeled scans teach no foreground" if len(missing) == len(kept) else ""
    return f"{' or '.join(missing)} in this epoch{collapsed}"


def epoch_line(curves: Mapping[str, float | list[float]], classes: Sequence[str]) -> str:
    """What an epoch's curves say of the unlabeled scans, in one line for nnU-Net's log; the lowest classes first."""
    scalars = {name: value for name, value in curves.items() if isinstance(value, float) and isfinite(value)}
    losses = [f"{_title(name)} {value:.3f}" for name, value in scalars.items() if name.startswith("loss_")]
    parts = [f"losses: {', '.join(losses)}"] if losses else []
    for name, title in (("kept_share", "sure enough to count"), ("stability", "network and its average agree")):
        value = curves.get(name)
        if isinstance(value, list):
            known = {label: of for label, of in zip(classes, value, strict=True) if isfinite(of)}
            lowest = sorted(known, key=lambda label: known[label])[:SHOWN]
            parts.append(f"{title}: {', '.join(f'{label} {known[label]:.0%}' for label in lowest) or 'no voxel'}")
        elif name in scalars:
            parts.append(f"{title}: {scalars[name]:.0%}")
    if "pseudo_label_dice" in scalars:
        parts.append(f"Dice of its labels by hidden labels {scalars['pseudo_label_dice']:.3f}")
    if scalars.get("skipped_share"):
        parts.append(f"skipped steps {scalars['skipped_share']:.0%}")
    return "; ".join(parts)


def write_curves(logger: MetaLogger, file: Path, classes: Sequence[str]) -> None:
    """Every logged curve into ``file`` (CSV), a row for each epoch, a column for each class; empty where not known.

    Args:
        classes: names of all classes, background first, or of the regions; nnU-Net's Dice has no background.
    """
    columns: dict[str, np.ndarray] = {}
    of_nnunet = {name: logger.get_value(key, step=None) for name, key in NNUNET.items()}
    ours = {PREFIX + name: values for name, values in logged_curves(logger).items()}
    for name, values in (of_nnunet | ours).items():
        for label, column in _columns(values, classes).items():
            columns[f"{name}/{label}" if label else name] = column
    rows = zip_longest(*columns.values(), fillvalue=float("nan"))
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *columns])
    writer.writerows([i, *(f"{v:.6g}" if isfinite(v) else "" for v in row)] for i, row in enumerate(rows))
    write_text(text.getvalue(), file)


def plot_curves(
    logger: MetaLogger,
    file: Path,
    classes: Sequence[str],
    stages: Sequence[tuple[float, str]] = (),
    limits: Mapping[str, Sequence[float]] | None = None,
    shown: tuple[np.ndarray, Mapping[int, Tensor]] | None = None,
) -> None:
    """Draw every logged curve into ``file`` (PNG), one panel for each kind; a method's own kinds share the last one.

    Args:
        classes: as :func:`write_curves` has them.
        stages: (epoch, name) of each stage's beginning: a vertical line in every panel, named in the first.
        limits: of a curve, the values that decide something: horizontal lines.
        shown: unlabeled slices (slices, rows, columns) and by epoch their labels, numbers of the foreground classes
            from 1; the one with most foreground in the end is drawn below.
    """
    store = {"dice": logger.get_value(NNUNET["dice"], step=None), **logged_curves(logger)}
    store = {name: values for name, values in store.items() if values}
    losses = [name for name in store if name.startswith("loss_")]
    labeled = [name for name in losses if name in WITH_DICE]
    panels = {
        "Dice of nnU-Net's validation patches": ["dice"],
        "loss of the labeled scans, and of both together (falls to -1)": labeled,
        "losses of the unlabeled scans": [name for name in losses if name not in labeled],
        "share of unlabeled voxels that are sure enough to count, per predicted class": ["kept_share"],
        "Dice of the network's labels of unlabeled scans, by hidden labels": ["pseudo_label_dice"],
        "size of each class: predicted in unlabeled patches / drawn in labeled ones": ["share"],
        "Dice of the network's labels with its average's, on unlabeled patches": ["stability"],
        "agreement with the pseudo-label": [name for name in store if name.startswith("agreement_")],
        "gradient norm before clipping": [name for name in store if name.startswith("gradient_norm_")],
        "share of steps": ["clipped_share", "skipped_share"],
    }
    known = {name for names in panels.values() for name in names}
    own = [name for name in store if name not in known]
    panels[f"the method's own: {', '.join(own)}"] = own
    panels = {title: names for title, names in panels.items() if store.keys() & set(names)}
    with plt.style.context("default"):  # nnU-Net's own plot leaves seaborn's large fonts behind
        strip = shown is not None and len(shown[1]) > 0
        figure = plt.figure(figsize=(10, 3.2 * len(panels) + 1.6 * strip), layout="constrained")
        grid = figure.add_gridspec(len(panels) + strip, 1, height_ratios=[2] * len(panels) + [1] * strip)
        axes = grid[: len(panels)].subgridspec(len(panels), 1).subplots(sharex=True, squeeze=False)[:, 0]
        for axis, (title, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                for label, column in _columns(store.get(name, []), classes).items():
                    line = ", ".join(part for part in (_title(name) if len(names) > 1 else "", label) if part)
                    # a line of one point is invisible
                    marker = "o" if np.isfinite(column).sum() == 1 else None
                    color = f"C{list(classes).index(label)}" if label and len(names) == 1 else None  # of each class
                    axis.plot(column, label=line or _title(name), marker=marker, color=color)
                for limit in (limits or {}).get(name, ()):
                    axis.axhline(limit, color="black", linestyle=":", linewidth=1)
            if names == ["share"]:
                axis.set_yscale("symlog", base=2, linthresh=2**-5)  # a class that is not predicted has 0
                axis.yaxis.set_major_formatter("{x:g}")
            decides = limits and any(name in limits for name in names)
            axis.set_title(title + ("; dotted: what self-training asks for" if decides else ""), loc="left")
            for start, _ in stages[1:]:
                axis.axvline(start - 0.5, color="gray", linestyle="--")  # an epoch's value stands at its number
            if len(axis.get_legend_handles_labels()[0]) > 1 or set(names) & set(losses):
                axis.legend(fontsize="small", ncols=2)
            axis.grid(alpha=0.3)
        for i, (start, name) in enumerate(stages):
            place = {"transform": axes[0].get_xaxis_transform(), "va": "bottom", "color": "gray"}
            axes[0].text(max(start - 0.5, 0), 0.02 + 0.09 * (i % 2), name, **place)
        axes[-1].set_xlabel("epoch")
        if shown is not None and strip:
            _draw_slices(figure.add_subplot(grid[-1]), *shown, classes)
        figure.savefig(file)
        plt.close(figure)


def _draw_slices(axis: Axes, slices: np.ndarray, labels: Mapping[int, Tensor], classes: Sequence[str]) -> None:
    """One slice as its labels were in each of the epochs, side by side."""
    colors = {name: f"C{i}" for i, name in enumerate(classes) if name != BACKGROUND}  # the curves'
    epochs = sorted(labels)
    chosen = int((labels[epochs[-1]] > 0).sum((1, 2)).argmax())
    low, high = np.percentile(slices[chosen], (1, 99))
    gray = np.clip((slices[chosen] - low) / max(high - low, 1e-6), 0, 1)[..., None]
    pictures = []
    for epoch in epochs:
        label = labels[epoch][chosen].numpy()
        picture = np.repeat(gray, 3, -1)
        for i, color in enumerate(colors.values(), 1):
            picture[label == i] = (picture[label == i] + to_rgb(color)) / 2
        pictures.append(picture)
    axis.imshow(np.hstack(pictures))
    width = gray.shape[1]
    axis.set_xticks([width * (i + 0.5) for i in range(len(epochs))], [f"epoch {epoch}" for epoch in epochs])
    axis.set_yticks([])
    axis.set_title("an unlabeled slice, and what the network's average labels on it", loc="left")
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    axis.legend(handles=handles, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


def _columns(values: list, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Of a curve with a value for each class, one column each; else one without a name. A gap is nan."""
    width = max((len(value) for value in values if isinstance(value, list)), default=0)
    if not width:
        return {"": np.array(values, float)}
    rows = [value if isinstance(value, list) else [value] * width for value in values]
    names = classes[len(classes) - width :]  # nnU-Net's Dice has no background
    return dict(zip(names, np.array(rows, float).T, strict=True))


def _title(name: str) -> str:
    for prefix in ("gradient_norm_", "agreement_"):
        name = name.removeprefix(prefix)
    loss = name.removeprefix("loss_")
    return f"{LOSSES[loss]} ({loss})" if name.startswith("loss_") and loss in LOSSES else name.replace("_", " ")
