"""The rounds of a self-training as a table: of each fold for a file, over the folds for a terminal."""

import csv
import io
import math
import re
from collections.abc import Iterable
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.comparison.runs import read_run
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.self_training.rounds import Figures
from nnunetv2_crossmatch.utilities.tables import aligned, percent

Row = dict[str, Any]
_OF_ROUND = {"round": "round", "scans": "scans", "left_out": "left out", "changed": "changed [%]"}
_OF_CLASS = {
    "class": "class",
    "agreement": "agreement [%]",
    "sure": "sure [%]",
    "volume": "volume",
    "dice": "Dice [%], hidden labels",
    "validation_dice": "Dice [%], validation",
}
_LAST = {"hours": "hours so far"}


def make_rows(
    number: int,
    run: RunFolder,
    models: list[RunFolder],
    figures: dict[str, Figures],
    left_out: int,
    classes: dict[str, tuple[int, ...]],
) -> list[Row]:
    """A row for each class of one round and fold; means over the scans, None where there is nothing.

    Args:
        run: the fold; ``models`` labeled the scans.
        left_out: scans that the next training leaves out.
    """
    trained = all(model.is_trained for model in models)
    of_round = {
        "round": number,
        "fold": run.fold,
        "trainer": run.trainer,
        "scans": len(figures),
        "left_out": left_out,
        "changed": _mean(scan["changed"] for scan in figures.values()),
    }
    hours = sum(read_run(model).hours for model in models) if trained else None  # with those of their teachers
    validation = _validation_dice(run)
    return [
        {
            **of_round,
            "class": name,
            **{
                key: _mean(scan["classes"][name][key] for scan in figures.values())
                for key in ("agreement", "sure", "volume", "dice")
            },
            "unit": next((scan["unit"] for scan in figures.values()), None),
            "validation_dice": validation.get(frozenset(values)),
            "hours": hours,
        }
        for name, values in classes.items()
    ]


def _validation_dice(run: RunFolder) -> dict[frozenset[int], float]:
    """nnU-Net's, of each class or region by its values; fold "all" has learned what it validates."""
    if run.fold == "all" or not run.is_validated:
        return {}
    means = load_json(str(run.validation / "summary.json"))["mean"]
    found = {frozenset(map(int, re.findall(r"\d+", key))): float(of_class["Dice"]) for key, of_class in means.items()}
    return {values: dice for values, dice in found.items() if not math.isnan(dice)}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def as_csv(rows: list[Row]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def as_text(rows: list[Row]) -> list[str]:
    """Means over the folds; scans and hours are their sums."""
    unit = next((row["unit"] for row in rows if row["unit"]), "ml")
    titles = [*_OF_ROUND.values(), *_OF_CLASS.values(), *_LAST.values()]
    lines = [[f"volume [{unit}]" if title == "volume" else title for title in titles]]
    for number in dict.fromkeys(row["round"] for row in rows):
        of_round = [row for row in rows if row["round"] == number]
        folds = {row["fold"]: row for row in of_round}.values()
        hours = [row["hours"] for row in folds]
        summed = {
            "round": number,
            "scans": sum(row["scans"] for row in folds),
            "left_out": sum(row["left_out"] for row in folds),
            "changed": _mean(row["changed"] for row in folds),
            "hours": None if None in hours else sum(hours),
        }
        for i, name in enumerate(dict.fromkeys(row["class"] for row in of_round)):
            of_class = [row for row in of_round if row["class"] == name]
            means = {"class": name, **{key: _mean(row[key] for row in of_class) for key in list(_OF_CLASS)[1:]}}
            once = [_cell(title, summed[key]) if i == 0 else "" for key, title in _OF_ROUND.items()]
            last = [_cell(title, summed[key]) if i == 0 else "" for key, title in _LAST.items()]
            of_titles = [_cell(title, means[key]) for key, title in _OF_CLASS.items()]
            lines.append([*once, *of_titles, *last])
    return aligned(lines)


def _cell(title: str, value: float | str | None) -> str:
    if value is None:
        return "-"
    if "[%]" in title and isinstance(value, float):
        return percent(value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
