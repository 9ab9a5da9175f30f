"""The package as it is used from Python."""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import nnunetv2_crossmatch as cm
from nnunetv2_crossmatch.trainers import METHODS
from tests.conftest import make_raw_dataset, use_folders, write_image


def test_the_package_is_imported_at_once_and_says_what_it_has():
    code = "import sys, nnunetv2_crossmatch as cm; assert not {'torch', 'numpy', 'nnunetv2'} & sys.modules.keys()\n"
    code += "print(*dir(cm))"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert names == ["__version__", "check", "compare", "evaluate", "list_trainers", "preprocess"]
    assert all(inspect.getdoc(getattr(cm, name)) for name in names[1:])
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        cm.chekc  # noqa: B018


def test_the_trainers_are_listed():
    assert [entry.name for entry in cm.list_trainers()] == list(METHODS)


def test_a_dataset_is_checked_by_its_id_and_errors_are_exceptions(tmp_path, monkeypatch):
    use_folders(tmp_path, monkeypatch.setenv)
    make_raw_dataset(tmp_path / "raw" / "Dataset903_Toy", labeled=2, unlabeled=1)
    found = cm.check(903, num_processes=1)
    assert {part: len(scans) for part, scans in found.content.items()} == {"imagesTr": 2, "unlabeled": 1}
    assert not found.bad and cm.check("Dataset903_Toy", num_processes=1).content == found.content
    with pytest.raises(ValueError, match="There is no dataset 904"):
        cm.check(904)


@pytest.mark.parametrize(("test", "asked"), [(True, "auto"), (False, "cpu")])
def test_a_comparison_takes_the_device_that_there_is(monkeypatch, test, asked):
    monkeypatch.setattr("nnunetv2_crossmatch.api._find", str)
    monkeypatch.setattr("nnunetv2_crossmatch.api.as_device", str)
    monkeypatch.setattr("nnunetv2_crossmatch.api.compare_models", lambda *what: what[6])
    assert cm.compare(1, "2d", ["a", "b"], test=test) == asked


def test_folders_are_evaluated(tmp_path):
    truth = np.zeros((3, 4, 5), np.uint8)
    truth[1, :2] = 1
    predicted = truth.copy()
    predicted[1, 1] = 0
    write_image(truth, tmp_path / "truth" / "a.nii.gz")
    write_image(predicted, tmp_path / "predicted" / "a.nii.gz")
    labels = {"labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(labels))
    found = cm.evaluate(os.fspath(tmp_path / "truth"), tmp_path / "predicted", tmp_path / "dataset.json", 1)
    assert found.cases == ["a"] and found.values[0, 0, 0] == pytest.approx(2 / 3)
