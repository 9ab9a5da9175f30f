import json

import pytest

from nnunetv2_crossmatch.utilities.dataset_json import read_dataset_json
from nnunetv2_crossmatch.utilities.errors import DatasetError

WHOLE = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2], "ignore": 3}, "file_ending": ".png"}


@pytest.mark.parametrize(
    ("change", "complaints"),
    [
        ({}, []),
        ({"channel_names": None, "modality": {"0": "CT"}}, []),
        ({"channel_names": None}, ["channel_names"]),
        ({"channel_names": ["CT"]}, ["channel_names"]),
        ({"labels": {"0": "background", "1": "tumor"}}, ["labels"]),
        ({"labels": ["background"], "file_ending": None}, ["labels", "file_ending"]),
        ({"file_ending": "nii.gz"}, ["file_ending"]),
        ({"channel_names": {"R": 0, "G": 1}}, ["channel_names"]),
        ({"labels": {"background": "0", "tumor": "1"}}, ["labels"]),
        ({"labels": {"background": 0, "tumor": 1.5}}, ["labels"]),
        ({"labels": {"background": 0, "tumor": 1.0}}, []),
        ({"labels": {"background": 0, "whole": []}}, ["labels"]),
        ({"labels": {"background": 1, "tumor": 0}}, ["labels"]),
        ({"labels": {"tumor": 1}}, ["labels"]),
    ],
)
def test_what_is_missing_or_in_another_form_is_named(tmp_path, change, complaints):
    file = tmp_path / "dataset.json"
    content = {key: value for key, value in {**WHOLE, **change}.items() if value is not None}
    file.write_text(json.dumps(content), encoding="utf-16")
    if not complaints:
        assert read_dataset_json(file) == content
        return
    with pytest.raises(DatasetError) as error:
        read_dataset_json(file)
    assert [line.split(f"{file} has no ")[1].split(",")[0] for line in error.value.problems] == complaints


def test_masks_are_read_without_channels_and_a_list_is_no_dataset(tmp_path):
    file = tmp_path / "dataset.json"
    content = {key: value for key, value in WHOLE.items() if key != "channel_names"}
    file.write_text(json.dumps(content))
    assert read_dataset_json(file, needs_channels=False) == content
    file.write_text("[]")
    with pytest.raises(DatasetError, match="is not of the form"):
        read_dataset_json(file)
