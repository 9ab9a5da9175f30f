"""Published results of the benchmarks (``published.csv``), each with what is known of its protocol."""

import csv
from dataclasses import dataclass
from importlib.resources import files

FOOTNOTES = {
    "crop": "The volumes were cropped around the ground truth, test scans included (the community's h5 files).",
    "validation-list": "The released test script reads the validation list of 10 patients, not the 20 test patients.",
    "best-checkpoint": "The checkpoint is the one that was best on validation and test scans.",
    "test-selection": "The released training script keeps the checkpoint that is best on the test scans.",
    "last-checkpoint": "The checkpoint is the last one.",
    "overlapping-lists": "The released list of unlabeled scans holds 12 of the 16 labeled ones.",
    "empty-reference": "The released metric gives Dice 1 to a prediction where the reference is empty.",
}


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table.

    Attributes:
        values: Dice and Jaccard in percent, 95HD and ASD in voxels, with the digits printed; None where not published.
        source: who published it.
        marks: keys of ``FOOTNOTES``; none where nothing is known of the protocol.
    """

    method: str
    values: tuple[str | None, ...]
    source: str
    marks: tuple[str, ...]


def published_rows(benchmark: str) -> list[PublishedRow]:
    """Rows of one benchmark; none where nothing is on record."""
    with (files(__package__) / "published.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    return [
        PublishedRow(
            line["method"],
            tuple(line[key] or None for key in ("dice", "jaccard", "hd95", "asd")),
            line["source"],
            tuple(line["marks"].split()),
        )
        for line in lines
        if line["benchmark"] == benchmark
    ]
