"""Curves of the unlabeled part: gathered over an epoch, logged by nnU-Net, drawn beside its progress.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from torch import Tensor

from nnunetv2_crossmatch.nnunet.logger import logged_curves


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
    kept = {
        name: share for name, share, ask in zip(classes, shares, asked, strict=True) if ask and name != "0"
    }  # not the background
    missing = [name for name, share in kept.items() if not share > 0]
    if not missing:
        return ""
    collapsed = ", so the unlabeled scans teach no foreground" if len(missing) == len(kept) else ""
    return f"{' or '.join(missing)} in this epoch{collapsed}"


def plot_curves(logger: MetaLogger, file: Path, classes: list[str], stages: Sequence[tuple[float, str]] = ()) -> None:
    """Draw every logged curve into ``file`` (PNG), one panel for each kind; a method's own kinds share the last one.

    ``stages`` are (epoch, name) of each stage's beginning: a vertical line in every panel, named in the first.
    """
    store = logged_curves(logger)
    panels = {
        "loss": [name for name in store if name.startswith("loss_")],
        "share of voxels that count, per predicted class": ["kept_share"],
        "Dice of the network's labels of unlabeled scans, by hidden labels": ["pseudo_label_dice"],
        "agreement with the pseudo-label": [name for name in store if name.startswith("agreement_")],
        "gradient norm before clipping": [name for name in store if name.startswith("gradient_norm_")],
        "share of steps": ["clipped_share", "skipped_share"],
        "Dice of the network's labels with its average's, on unlabeled patches": ["stability"],
        "share of unlabeled patches over the share of labeled ones": ["share"],
    }
    known = {name for names in panels.values() for name in names}
    own = [name for name in store if name not in known]
    panels[f"the method's own: {', '.join(own)}"] = own
    panels = {title: names for title, names in panels.items() if title == "loss" or store.keys() & set(names)}
    with plt.style.context("default"):  # nnU-Net's own plot leaves seaborn's large fonts behind
        size = (10, 4 * len(panels))
        figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, layout="constrained", squeeze=False)
        axes = axes[:, 0]
        for axis, (title, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                values = store.get(name, [])
                if any(isinstance(value, list) for value in values):
                    rows = [v if isinstance(v, list) else [v] * len(classes) for v in values]
                    columns = np.array(rows, float).reshape(-1, len(classes)).T
                    for label, column in zip(classes, columns, strict=True):
                        axis.plot(column, label=label if len(names) == 1 else f"{name}, {label}")
                else:
                    axis.plot(values, label=name.removeprefix("gradient_norm_").removeprefix("agreement_"))
            axis.set_title(title)
            for start, _ in stages[1:]:
                axis.axvline(start - 0.5, color="gray", linestyle="--")  # an epoch's value stands at its number
            if len(axis.get_legend_handles_labels()[0]) > 1:
                axis.legend()
            axis.grid(alpha=0.3)
        for start, name in stages:
            place = {"transform": axes[0].get_xaxis_transform(), "va": "bottom", "color": "gray"}
            axes[0].text(max(start - 0.5, 0), 0, name, **place)
        axes[-1].set_xlabel("epoch")
        figure.savefig(file)
        plt.close(figure)
