from types import SimpleNamespace

import numpy as np

from nnunetv2_crossmatch.comparison.page import _pair
from nnunetv2_crossmatch.comparison.report import missing_objects, ranking
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


def test_the_models_are_ranked_case_by_case():
    def model(name, *dices) -> SimpleNamespace:
        values = np.zeros((len(dices), 1, 6))
        values[:, 0, 0] = dices
        nothing = np.zeros((len(dices), 1), bool)
        return SimpleNamespace(trainer=name, hours=2, evaluation=Evaluation(["a"], ["c"], values, nothing, nothing, []))

    models = [model("never", 0.1, 0.1, 0.9), model("often", 0.2, 0.5, 1.0), model("once", 0.8, 0.5, 0.2)]
    rows = ranking(SimpleNamespace(models=models, units=["p", "q", "r"]))
    assert [(row["trainer"], row["rank"], row["best"]) for row in rows] == [
        ("often", "1.50", "2 of 3"),  # 2, 1.5, 1
        ("once", "1.83", "2 of 3"),  # 1, 1.5, 3
        ("never", "2.67", "0 of 3"),  # 3, 3, 2
    ]
    assert rows[0]["mean"] == "56.7" and rows[0]["hours"] == "2.00"


def test_long_names_of_trainers_are_cut_and_still_tell_pages_apart():
    names = [[letter * 60 for letter in letters] for letters in ("abc", "abd")]
    assert _pair(["one", "two"]) == "one_vs_two"
    assert len({_pair(of) for of in names}) == 2 and max(len(_pair(of)) for of in names) < 120
