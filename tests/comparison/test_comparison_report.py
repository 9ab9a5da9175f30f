from types import SimpleNamespace

import numpy as np

from nnunetv2_crossmatch.comparison.report import missing_objects
from nnunetv2_crossmatch.evaluation.summary import Evaluation


def test_missed_and_invented_objects_are_counted_with_their_scans():
    cases = ["a", "b", "c", "d"]
    in_reference = np.array([[True], [True], [True], [False]])
    of = {"stock": [True, False, True, False], "ours": [False, False, False, True]}
    models = [
        SimpleNamespace(
            trainer=name,
            evaluation=Evaluation(cases, ["tail"], np.zeros((4, 1, 6)), np.array(missed)[:, None], in_reference, []),
        )
        for name, missed in of.items()
    ]
    assert missing_objects(SimpleNamespace(models=models)) == [
        "tail missing in 2 of 3 scans of stock: a, c.",
        "tail invented in 1 of 1 scans without it of ours: d.",
    ]
