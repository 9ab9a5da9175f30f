import json
from types import SimpleNamespace

import numpy as np

from nnunetv2_crossmatch.comparison.page import _pair
from nnunetv2_crossmatch.comparison.report import _sentence, format_text, missing_objects, ranking
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
    found = missing_objects(SimpleNamespace(models=models))
    assert found == [
        {"trainer": "stock", "class": "tail", "what": "missed", "of": 3, "cases": ["a", "c"]},
        {"trainer": "ours", "class": "tail", "what": "invented", "of": 1, "cases": ["d"]},
    ]
    assert json.loads(json.dumps(found)) == found
    assert [_sentence(odd) for odd in found] == [
        "stock misses tail in 2 of the 3 scans that have it: a, c.",
        "ours invents tail in 1 of the 1 scans that lack it: d.",
    ]


def test_many_missed_objects_are_cut_in_the_terminal(monkeypatch):
    row = {"trainer": "stock", "class": "tail", "what": "missed", "of": 3, "cases": ["a"]}
    monkeypatch.setattr("nnunetv2_crossmatch.comparison.report.missing_objects", lambda comparison: [row] * 25)
    model = SimpleNamespace(trainer="stock", seeds=[None])
    monkeypatch.setattr("nnunetv2_crossmatch.comparison.report.costs", lambda comparison: [])
    of = {"models": [model], "dice_of_seeds": lambda model: np.ones(1)}
    text = format_text(SimpleNamespace(**of, titles={}, warnings=[], verdicts={}))
    assert text.count("stock misses tail") == 20 and "and 5 more such lines, on the page" in text


def test_the_models_are_ranked_case_by_case():
    def model(name, *dices) -> SimpleNamespace:
        values = np.zeros((len(dices), 1, 6))
        values[:, 0, 0] = dices
        nothing = np.zeros((len(dices), 1), bool)
        return SimpleNamespace(trainer=name, hours=2, evaluation=Evaluation(["a"], ["c"], values, nothing, nothing, []))

    models = [model("never", 0.1, 0.1, 0.9), model("often", 0.2, 0.5, 1.0), model("once", 0.8, 0.5002, 0.2)]
    of = {"models": models, "units": ["p", "q", "r"]}
    assert ranking(SimpleNamespace(**of, few=True)) == []
    rows = ranking(SimpleNamespace(**of, few=False))
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
