"""Benchmarks and plain folders of scans as semi-supervised nnU-Net datasets, one file each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Converter:
    """A benchmark; the file of its name has ``convert(source, labeled, **options) -> Conversion``.

    Attributes:
        published: numbers of labeled scans (or patients) with published results.
        classes: names of its foreground classes.
        test_cases: how many cases are tested; two numbers where one of two lists is left out.
        dataset_id: of the benchmark's first dataset where scripts make one; its numbers of labels are added to it.
        configuration: of nnU-Net, the one that the papers' networks correspond to.
        options: name (a Python identifier) -> arguments of argparse's ``add_argument``; without it on the command line
            its value is false.
    """

    published: tuple[int, ...]
    dataset_id: int
    classes: tuple[str, ...] = ()
    test_cases: tuple[int, ...] = ()
    configuration: str = "3d_fullres"
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_DUPLICATES = {"action": "store_true", "help": "keep scans 25 and 70, which are the same as scan 2"}
_TEST = {"type": int, "default": 0, "metavar": "N", "help": "hold out N scans for testing"}

CONVERTERS = {
    "la": Converter((4, 8, 16), 700, ("left_atrium",), (20,)),
    "acdc": Converter((1, 3, 7), 720, ("RV", "MYO", "LV"), (40,), "2d"),
    "pancreas": Converter((6, 12), 740, ("pancreas",), (18, 19, 20), options={"duplicates": _DUPLICATES}),
    "isic": Converter((103, 207, 415), 300, ("lesion",), (519,), "2d"),
    "lits": Converter((1, 5, 10), 760, ("liver", "tumor"), (31,)),
    "nifti": Converter((), 780, options={"test": _TEST}),
}
