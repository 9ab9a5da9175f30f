"""A benchmark is one file and one line."""

import csv
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from nnunetv2_crossmatch.dataset_conversion import CONVERTERS
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", CONVERTERS)
def test_each_has_a_file_that_takes_its_options(name):
    convert = import_module(f"nnunetv2_crossmatch.dataset_conversion.{name}").convert
    assert list(signature(convert).parameters) == ["source", "labeled", *CONVERTERS[name].options]


def test_no_converter_is_left_out():
    files = (REPOSITORY / "dataset_conversion").glob("*.py")
    assert {f.stem for f in files if "\ndef convert(" in f.read_text()} == set(CONVERTERS)


def test_datasets_of_scripts_have_ids_of_their_own():
    ids = [of.dataset_id + n for of in CONVERTERS.values() for n in of.published]
    assert len(set(ids)) == len(ids)
    assert all(0 < i < 1000 for i in ids)


def test_published_results_are_of_numbers_that_can_be_converted():
    possible = {f"{name}-{n}" for name, of in CONVERTERS.items() for n in of.published}
    with (REPOSITORY / "nnunetv2_crossmatch" / "evaluation" / "published.csv").open(encoding="utf-8") as stream:
        assert {row["benchmark"] for row in csv.DictReader(stream)} <= possible


def test_each_stands_in_the_readme():
    text = Path(REPOSITORY, "dataset_conversion", "README.md").read_text()
    assert all(f"| `{name}` |" in text for name in CONVERTERS)


@pytest.mark.parametrize("name", [name for name, of in CONVERTERS.items() if of.published])
def test_classes_are_those_of_the_converted_dataset(name):
    source = (REPOSITORY / "dataset_conversion" / f"{name}.py").read_text()
    labels = ", ".join(f'"{label}": {value}' for value, label in enumerate(("background", *CONVERTERS[name].classes)))
    assert f"labels={{{labels}}}" in source and CONVERTERS[name].test_cases
