"""When unlabeled scans may teach, class by class: once the network knows the class, and as long as it does.

Two keys, each asked at the end of every epoch. One needs labels: nnU-Net's own Dice of the validation patches. One
needs none, for fold ``all`` and few cases: on unlabeled patches that stay the same, the network and its moving average
agree, and the class takes about the share of the voxels that it takes in labeled ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Thresholds:
    """Chosen so that a class is let in once it is known, long before it is learned to the end.

    window: epochs that are averaged, in a short training a fifth of its epochs.
    dice: nnU-Net's Dice of the class from which it is known.
    rise: of this Dice from one window to the next, above which it is still being found.
    stability: Dice of the network's labels with its average's.
    share: at most this many times the labeled share of voxels, and at least one over it.
    fall: of the class's Dice below its level when it came in, that mutes it.
    mean_fall: of the mean over the classes that came in, that ends self-training.
    patience: share of the training up to which self-training waits for every class, and then for more than half of
        them: where it does not know a class yet, a network is often sure of background.
    latest: share of the training after which self-training does not begin any more.
    """

    window: int = 3
    dice: float = 0.5
    rise: float = 0.1
    stability: float = 0.7
    share: float = 4.0
    fall: float = 0.15
    mean_fall: float = 0.08
    patience: float = 0.5
    latest: float = 0.6


@dataclass
class Readiness:
    """Which classes are taught, and since when.

    Args:
        names: of the foreground classes or regions.
        at: begin with this epoch, with every class, whatever the network knows: to try a GPU, or in tests.

    Attributes:
        started: epoch at which self-training began.
        ended: epoch at which it was turned back, or given up; it does not begin again.
        taught: names of the classes that the unlabeled scans teach now.
        levels: the Dice of each class when it came in.
    """

    names: Sequence[str]
    at: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    started: int | None = None
    ended: int | None = None
    taught: list[str] = field(default_factory=list)
    levels: dict[str, float] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether the unlabeled scans teach in this epoch."""
        return self.started is not None and self.ended is None

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes: plain data."""
        return {key: value for key, value in asdict(self).items() if key not in ("names", "at", "thresholds")}

    def load(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state`."""
        for key, value in state.items():
            setattr(self, key, value)

    def stages(self) -> list[tuple[float, str]]:
        """(epoch, name) of what came after nnU-Net's own training."""
        began = [] if self.started is None else [(float(self.started), "self-training")]
        return began + ([(float(self.ended), "labeled scans alone")] if began and self.ended is not None else [])

    def begin(self, dice: Mapping[str, float], share: Mapping[str, float]) -> list[str]:
        """Begin with a trained network: its validation Dice and the share of each class, as :meth:`update` has them."""
        t = self.thresholds
        self.started = 0
        messages = []
        for name in self.names:
            if dice[name] < t.dice:  # False for nan
                messages.append(f"{name}: not taught from unlabeled scans yet, validation Dice {dice[name]:.2f}.")
            elif not self._plausible(share[name]):
                times = f"it takes {share[name]:.2g} times its labeled share of them"
                messages.append(f"{name}: not taught from unlabeled scans yet, {times}.")
            else:
                self.taught.append(name)
                self.levels[name] = float(dice[name])
        return messages

    def update(self, epoch: int, epochs: int, curves: Mapping[str, np.ndarray]) -> list[str]:
        """Decide for ``epoch`` from all epochs before it; returns what there is to say.

        Args:
            epochs: of the whole training.
            curves: each (epochs so far, classes), nan where nothing is known: ``dice`` (nnU-Net's), ``stability``,
                ``share`` (the unlabeled share of voxels over the labeled one).
        """
        if self.ended is not None:
            return []
        t, messages = self.thresholds, []
        window = max(1, min(t.window, epochs // 5))
        columns = self._columns(curves)
        if self.at is None:
            missing = {name: self._missing(column, window) for name, column in columns}
        else:
            missing = dict.fromkeys(self.names, "" if epoch >= self.at else "not yet")
        if self.started is None:
            ready = [name for name in self.names if not missing[name]]
            if len(ready) < len(self.names) and epoch < t.patience * epochs:
                return []
            if 2 * len(ready) <= len(self.names):
                if epoch < t.latest * epochs:
                    return []
                self.ended = epoch
                reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items() if reason)
                return [f"The unlabeled scans are not used: the network is not sure of most classes. {reasons}."]
            self.started = epoch
            messages.append(f"Self-training on the unlabeled scans begins with epoch {epoch}.")
        dice = {name: _mean(column["dice"], window) for name, column in columns}
        share = {name: _mean(column["share"], window) for name, column in columns}
        for name in self.levels:  # no validation patch had the class then
            if np.isnan(self.levels[name]):
                self.levels[name] = dice[name]
        falls = {name: level - dice[name] for name, level in self.levels.items() if np.isfinite(level - dice[name])}
        fall = np.mean(list(falls.values())) if falls else 0.0
        if fall > t.mean_fall:
            self.ended, self.taught = epoch, []
            return [
                f"Self-training ends: nnU-Net's validation Dice fell by {fall:.3f} since it began. The network goes "
                "back to where it was then and learns from the labeled scans alone."
            ]
        for name in self.names:
            if name in self.taught:
                reason = ""
                if falls.get(name, 0.0) > t.fall:
                    reason = f"its validation Dice fell from {self.levels[name]:.2f} to {dice[name]:.2f}"
                elif self.at is None and not self._plausible(share[name]):
                    reason = f"it takes {share[name]:.2g} times its labeled share of them"
                if reason:
                    self.taught.remove(name)
                    messages.append(f"{name}: not taught from unlabeled scans any more, {reason}.")
            elif not missing[name] and falls.get(name, 0.0) <= t.fall / 2:  # half: not to and fro
                self.taught.append(name)
                self.levels.setdefault(name, float(dice[name]))
                level = f" (validation Dice {dice[name]:.2f})" if np.isfinite(dice[name]) else ""
                messages.append(f"{name}: now taught from unlabeled scans, too{level}.")
        return messages

    def _plausible(self, share: float) -> bool:
        """Also where there is none: labeled patches without the class say nothing."""
        return bool(np.isnan(share) or 1 / self.thresholds.share <= share <= self.thresholds.share)

    def _columns(self, curves: Mapping[str, np.ndarray]) -> list[tuple[str, dict[str, np.ndarray]]]:
        return [(name, {key: values[:, i] for key, values in curves.items()}) for i, name in enumerate(self.names)]

    def _missing(self, column: Mapping[str, np.ndarray], window: int) -> str:
        """What the class lacks, in words; nothing if it is ready."""
        t = self.thresholds
        dice, share, stability = (_mean(column[key], window) for key in ("dice", "share", "stability"))
        if len(column["dice"]) < 2 * window:
            return "too early to tell"
        if dice < t.dice:  # False for nan: no validation patch has the class
            return f"validation Dice {dice:.2f}"
        if dice - _mean(column["dice"][:-window], window) > t.rise:
            return f"validation Dice {dice:.2f} and still rising"
        if not stability >= t.stability:
            return f"labels of unlabeled scans still change (agreement {stability:.2f})"
        if not self._plausible(share):
            return f"takes {share:.2g} times its labeled share of the unlabeled scans"
        return ""


def _mean(values: np.ndarray, window: int) -> float:
    """Of the last ``window`` values that are known; nan if there is none."""
    last = values[-window:]
    return float(np.nanmean(last)) if np.isfinite(last).any() else float("nan")
