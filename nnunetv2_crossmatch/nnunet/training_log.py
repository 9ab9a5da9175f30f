"""nnU-Net's ``training_log_*.txt``, read back: it is the only place where a stock run leaves its curves and hours."""

import csv
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+): (.*)")
_SPLIT = re.compile(r"This (?:random 80:20 )?split has (\d+) training and (\d+) validation cases\.")
PREFIX = "unlabeled/"  # of the curves of the unlabeled part
CURVES_FILE = "curves.csv"  # ours, beside the log
CURVES = "curves of the unlabeled part: "  # earlier versions': begins a line, the rest of which is JSON
_NUMBER = r"(-?[\d.]+(?:e[-+]?\d+)?|nan|-?inf)"


@dataclass
class TrainingLog:
    """nnU-Net's ``training_log_*.txt`` of one fold, all of them; an epoch that was trained twice counts once.

    Attributes:
        epochs: of the last training that began at epoch 0, each with its ``train_loss``, ``val_loss``, ``dice`` (mean
            pseudo Dice), ``seconds`` and, named ``unlabeled/...``, the curves of the unlabeled part.
        split: numbers of labeled cases that were trained on and held out; None for fold all.
        validated: whether the last thing done was a validation.
        ended: when each epoch was over, seconds since 1970.
    """

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    split: tuple[int, int] | None = None
    validated: bool = False
    ended: dict[int, float] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "TrainingLog":
        log, epoch, split = cls(), 0, None
        # nnU-Net writes year_month_day_hour_minute_second into the name, without leading zeros
        for file in sorted(
            folder.glob("training_log_*.txt"), key=lambda f: [int(n) for n in re.findall(r"\d+", f.stem)]
        ):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if not (message := _LINE.match(line)):
                    continue
                text = message[2].strip()
                if found := re.fullmatch(r"Epoch (\d+)", text):
                    epoch = int(found[1])
                    log.split, log.validated = split, False  # a validation alone reads the split, too
                    # what follows is trained anew
                    log.epochs = {number: values for number, values in log.epochs.items() if number < epoch}
                    log.ended = {number: when for number, when in log.ended.items() if number < epoch}
                    log.epochs[epoch] = {}
                elif epoch in log.epochs:
                    values = _values(text)
                    if "seconds" in values:
                        log.ended[epoch] = datetime.strptime(message[1], "%Y-%m-%d %H:%M:%S.%f").timestamp()
                    log.epochs[epoch] |= values
                if found := _SPLIT.fullmatch(text):
                    split = int(found[1]), int(found[2])
                elif text == "Validation complete":
                    log.validated = True
        if (folder / CURVES_FILE).exists():
            log._add_curves(folder / CURVES_FILE)
        return log

    def _add_curves(self, file: Path) -> None:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if (epoch := int(row["epoch"])) in self.epochs:
                    ours = {name: float(value) for name, value in row.items() if name.startswith(PREFIX) and value}
                    self.epochs[epoch] |= ours

    @property
    def hours(self) -> float:
        """Of the epochs, validation after the training not included."""
        return sum(epoch.get("seconds", 0.0) for epoch in self.epochs.values()) / 3600

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs and values, where there are some."""
        points = [(number, epoch[name]) for number, epoch in sorted(self.epochs.items()) if name in epoch]
        return [number for number, _ in points], [value for _, value in points]


def _values(text: str) -> dict[str, float]:
    for name in ("train_loss", "val_loss"):
        if found := re.fullmatch(f"{name} {_NUMBER}", text):
            return {name: float(found[1])}
    if found := re.fullmatch(r"Epoch time: ([\d.]+) s", text):
        return {"seconds": float(found[1])}
    if text.startswith("Pseudo dice"):
        dices = [float(value) for value in re.findall(rf"(?<![\w.]){_NUMBER}(?![\w.(])", text)]
        known = [dice for dice in dices if not math.isnan(dice)]
        return {"dice": sum(known) / len(known)} if known else {}
    if text.startswith(CURVES):
        try:
            curves = json.loads(text.removeprefix(CURVES))
        except ValueError:  # cut off by a full disk
            return {}
        return {PREFIX + name: value for name, value in curves.items() if isinstance(value, float)}
    return {}
