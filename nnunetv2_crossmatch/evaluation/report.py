"""An evaluation as JSON, as CSV and as text, alone or beside a benchmark's published rows."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.published import FOOTNOTES, published_rows
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, RESAMPLES, SEED, Evaluation, Summary
from nnunetv2_crossmatch.utilities.tables import aligned, percent

_CONVENTIONS = {
    "dice, jaccard": "fractions",
    "hd95": "95th percentile of the surface distances of both directions, pooled",
    "asd": "mean distance from the prediction's surface to the reference's",
    "undefined": "neither mask has the class: left out of the means",
    "missed": "one mask only has the class: Dice and Jaccard 0, distances the diagonal of the scan",
    MEAN_OF_CLASSES: "mean of the class means",
    "interval": f"95 %, percentile bootstrap over cases, {RESAMPLES} resamples, seed {SEED}",
}
_TITLES = ("Dice [%]", "Jaccard [%]", "95HD [voxels]", "ASD [voxels]", "95HD [mm]", "ASD [mm]")


def write_json(evaluation: Evaluation, summaries: dict[str, Summary], file: Path) -> None:
    """Everything: conventions, summaries, each case and class; null where a number is undefined."""
    content = {
        "conventions": _CONVENTIONS,
        "summary": {
            name: {
                "cases": summary.cases,
                "undefined": summary.undefined,
                "missed": summary.missed,
                **{
                    metric: {"mean": _known(s.mean), "std": _known(s.std), "interval": [_known(s.low), _known(s.high)]}
                    for metric, s in summary.statistics.items()
                },
            }
            for name, summary in summaries.items()
        },
        "cases": {
            case: {
                name: {
                    **dict(zip(METRICS, map(_known, evaluation.values[i, j].tolist()), strict=True)),
                    "missed": bool(evaluation.missed[i, j]),
                }
                for j, name in enumerate(evaluation.classes)
            }
            for i, case in enumerate(evaluation.cases)
        },
        "predictions_without_reference": evaluation.extra,
    }
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(evaluation: Evaluation, file: Path) -> None:
    """One row per case and class; empty where undefined."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "class", *METRICS, "missed"])
        for i, case in enumerate(evaluation.cases):
            for j, name in enumerate(evaluation.classes):
                values = ["" if math.isnan(value) else value for value in evaluation.values[i, j].tolist()]
                writer.writerow([case, name, *values, int(evaluation.missed[i, j])])


def format_summary(summaries: dict[str, Summary], without_spacing: bool = False) -> str:
    """A table of every class and metric, and how many cases were undefined or missed; photographs have pixels."""
    if len(summaries) == 2:  # of one class the foreground mean says nothing new
        summaries = {name: summary for name, summary in summaries.items() if name != MEAN_OF_CLASSES}
    rows = [("", "", "mean", "std", "95 % interval")]
    for name, summary in summaries.items():
        for metric, title in zip(METRICS, _TITLES, strict=True):
            if without_spacing and "[mm]" in title:
                continue
            title = title.replace("voxels", "pixels") if without_spacing else title
            show = percent if "[%]" in title else _number
            mean, std, low, high = map(show, astuple(summary.statistics[metric]))
            rows.append((name, title, mean, std, "-" if low == "-" else f"{low} to {high}"))
            name = ""
    lines = [*aligned(rows, right=(2, 3)), ""]
    lines += [
        f"{name}: {summary.cases} cases, {summary.undefined} undefined, {summary.missed} missed"
        for name, summary in summaries.items()
        if name != MEAN_OF_CLASSES
    ]
    lines += [f"{term}: {_CONVENTIONS[term]}" for term in ("undefined", "missed")]
    return "\n".join(lines)


def foreground_cells(summaries: dict[str, Summary]) -> list[str]:
    """Foreground means as the papers print them: Dice and Jaccard in percent, 95HD and ASD in voxels."""
    means = [summaries[MEAN_OF_CLASSES].statistics[metric].mean for metric in METRICS[:4]]
    return [_number(mean * scale) for mean, scale in zip(means, (100, 100, 1, 1), strict=True)]


def format_benchmark(benchmark: str, results: dict[str, Sequence[str]]) -> str:
    """Results (name: :func:`foreground_cells`) above the published rows, with what is known of each one's protocol."""
    rows = published_rows(benchmark)
    used = [mark for mark in FOOTNOTES if any(mark in row.marks for row in rows)]
    unit = "pixels" if benchmark.startswith("isic-") else "voxels"
    table = [[benchmark, "Dice [%]", "Jaccard [%]", f"95HD [{unit}]", f"ASD [{unit}]", "", ""]]
    table += [[name, *cells, "", ""] for name, cells in results.items()]
    for row in rows:
        marks = ",".join(f"[{used.index(mark) + 1}]" for mark in row.marks)
        table.append([row.method, *(value or "-" for value in row.values), marks, row.source])
    lines = aligned(table, right=range(1, 5))
    if not rows:
        return "\n".join([*lines, "", "No published rows are on record."])
    lines += ["", *(f"[{i}] {FOOTNOTES[mark]}" for i, mark in enumerate(used, 1))]
    return "\n".join([*lines, "No mark: nothing is known of the protocol. -: not published."])


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
