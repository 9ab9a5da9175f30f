import csv
import json
import re

import numpy as np
import pytest

from nnunetv2_crossmatch.evaluation.case import METRICS
from nnunetv2_crossmatch.evaluation.report import (
    foreground_cells,
    format_benchmark,
    format_summary,
    write_csv,
    write_json,
)
from nnunetv2_crossmatch.evaluation.summary import MEAN_OF_CLASSES, Evaluation, summarize

VALUES = np.array(
    [
        [[0.9, 0.8, 3.0, 1.0, 6.0, 2.0], [0.5, 0.4, 9.0, 5.0, 18.0, 10.0]],
        [[0.7, 0.6, 5.0, 3.0, 10.0, 6.0], [np.nan] * 6],
    ]
)
MISSED = np.array([[False, True], [False, False]])
EVALUATION = Evaluation(["a", "b"], ["shell", "core"], VALUES, MISSED, np.array([[True, True], [True, False]]), ["c"])


def test_json_holds_everything_and_null_where_undefined(tmp_path):
    write_json(EVALUATION, summarize(EVALUATION), tmp_path / "e.json")
    content = json.loads((tmp_path / "e.json").read_text())
    assert content["cases"]["a"]["core"] == {**dict(zip(METRICS, VALUES[0, 1].tolist(), strict=True)), "missed": True}
    assert content["cases"]["b"]["core"] == {**dict.fromkeys(METRICS), "missed": False}
    shell = content["summary"]["shell"]
    assert (shell["cases"], shell["undefined"], shell["missed"]) == (2, 0, 0)
    assert shell["dice"]["mean"] == pytest.approx(0.8) and shell["dice"]["interval"] == [0.7, 0.9]
    assert content["summary"]["core"]["hd95_mm"] == {"mean": 18, "std": None, "interval": [None, None]}
    assert content["summary"][MEAN_OF_CLASSES]["dice"]["mean"] == pytest.approx(0.65)
    assert content["predictions_without_reference"] == ["c"]
    assert "seed 0" in content["conventions"]["interval"]


def test_csv_has_a_row_per_case_and_class(tmp_path):
    write_csv(EVALUATION, tmp_path / "e.csv")
    rows = list(csv.DictReader((tmp_path / "e.csv").open()))
    assert [(row["case"], row["class"], row["missed"]) for row in rows] == [
        ("a", "shell", "0"), ("a", "core", "1"), ("b", "shell", "0"), ("b", "core", "0"),
    ]  # fmt: skip
    assert [float(rows[2][metric]) for metric in METRICS] == VALUES[1, 0].tolist()
    assert {rows[3][metric] for metric in METRICS} == {""}


def test_the_table_shows_percent_intervals_and_counts():
    table = format_summary(summarize(EVALUATION))
    assert re.search(r"mean of classes +Dice \[%\] +65.0 ", table)
    assert re.search(r"shell +Dice \[%\] +80.0 +14.1 +70.0 to 90.0", table)
    assert re.search(r"ASD \[mm\] +10.00 +- +-\n", table)
    assert "core: 2 cases, 1 undefined, 1 missed" in table


def test_of_a_single_class_no_mean_of_classes_is_shown():
    alone = Evaluation(["a", "b"], ["atrium"], VALUES[:, :1], MISSED[:, :1], MISSED[:, :1], [])
    assert MEAN_OF_CLASSES not in format_summary(summarize(alone))


def test_published_rows_stand_below_the_results_with_their_footnotes():
    results = {"ours": foreground_cells(summarize(EVALUATION)), "twin": ["64.00 +- 0.10", "1", "2", "3"]}
    lines = format_benchmark("acdc-3", results).splitlines()
    assert re.fullmatch(r"ours +65.00 +55.00 +6.50 +3.50", lines[1])
    assert lines[2].startswith("twin")
    assert lines[1].index("65.00") + 5 == lines[2].index("0.10") + 4 == lines[0].index("[%]") + 3  # flush right
    (crossmatch,) = [line for line in lines if line.startswith("CrossMatch  ")]
    assert re.search(r"88.27 +80.17 +1.53 +0.46 +\[1\],\[2\] ", crossmatch)
    (action,) = [line for line in lines if line.startswith("ACTION  ")]
    assert re.search(r"87.5 +- +- +1.12 +\[4\] ", action)
    footnotes = [line for line in lines if re.match(r"\[\d\]", line)]
    assert "10 patients" in footnotes[0] and "best on validation and test" in footnotes[1] and len(footnotes) == 4


def test_a_benchmark_without_published_rows_shows_the_results_alone():
    text = format_benchmark("hippocampus-4", {"ours": ["1", "2", "3", "4"]})
    assert text.splitlines()[1].split() == ["ours", "1", "2", "3", "4"]
    assert text.endswith("No published rows are on record.")
