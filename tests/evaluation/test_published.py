import csv
from pathlib import Path

import pytest

from nnunetv2_crossmatch.evaluation import published
from nnunetv2_crossmatch.evaluation.published import FOOTNOTES, published_rows

BENCHMARKS = ("la-4", "la-8", "la-16", "acdc-1", "acdc-3", "acdc-7", "lits-5", "lits-10")


@pytest.mark.parametrize(
    ("benchmark", "method", "values"),
    [
        ("la-8", "CrossMatch", ("91.33", "84.11", "5.29", "1.53")),
        ("la-16", "UA-MT", ("88.18", "79.09", "9.66", "2.62")),
        ("acdc-3", "CrossMatch", ("88.27", "80.17", "1.53", "0.46")),
        ("acdc-7", "BCP", ("88.84", "80.62", "3.98", "1.17")),
        ("acdc-7", "ACTION++", ("90.4", None, None, "0.592")),
        ("acdc-1", "UniMatch, last epoch", ("84.63", None, None, None)),
        ("la-4", "ACTION", ("86.6", None, None, "2.24")),
        ("lits-5", "ACTION", ("66.8", None, None, "17.7")),
        ("lits-10", "U-Net or V-Net, all labels", ("68.2", None, None, None)),
    ],
)
def test_rows_are_as_published(benchmark, method, values):
    (row,) = [row for row in published_rows(benchmark) if row.method == method]
    assert row.values == values


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_rows_are_whole_and_plausible(benchmark):
    rows = published_rows(benchmark)
    assert len({row.method for row in rows}) == len(rows)
    for row in rows:
        dice, jaccard, hd95, asd = (value and float(value) for value in row.values)
        assert row.source and dice is not None and 40 < dice < 100
        assert (jaccard is None) == (hd95 is None)
        if jaccard is not None:
            assert jaccard < dice < 100 * 2 * jaccard / (100 + jaccard) + 3 and asd < hd95
        assert set(row.marks) <= set(FOOTNOTES)


def test_the_faults_of_a_protocol_are_marked():
    assert all("crop" in row.marks for key in BENCHMARKS[:3] for row in published_rows(key))
    marks = {row.method: row.marks for row in published_rows("acdc-3")}
    assert marks["CrossMatch"] == ("validation-list", "best-checkpoint")
    assert (marks["UniMatch, best epoch"], marks["UniMatch, last epoch"]) == (
        ("best-checkpoint",),
        ("last-checkpoint",),
    )
    assert marks["BCP"] == ()


def test_the_benchmarks_on_record():
    with Path(published.__file__).with_suffix(".csv").open(encoding="utf-8") as stream:
        assert {row["benchmark"] for row in csv.DictReader(stream)} == {*BENCHMARKS}
    assert published_rows("acdc-5") == []
