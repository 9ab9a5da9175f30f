import json
from pathlib import Path

import pytest

from nnunetv2_crossmatch.preprocessing.listing import group_channels, labeled_scans, list_unlabeled
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import make_raw_dataset


@pytest.fixture
def raw(tmp_path):
    make_raw_dataset(tmp_path / "D", labeled=2, unlabeled=2, test=1, channels=2)
    return tmp_path / "D"


def dataset_json(raw):
    return json.loads((raw / "dataset.json").read_text())


def test_the_folder_is_the_list(raw):
    listed = list_unlabeled(raw, dataset_json(raw))
    assert {case: [f.name for f in files] for case, files in listed.items()} == {
        f"scan{i}": [f"scan{i}_0000.nii.gz", f"scan{i}_0001.nii.gz"] for i in range(2)
    }


def test_unlabeled_json_wins_over_the_folder_and_takes_relative_and_absolute_paths(raw, monkeypatch):
    monkeypatch.setenv("SCANS", str(raw / "imagesUn"))
    entries = {
        "a b.c": {"images": ["imagesUn/scan0_0000.nii.gz", str(raw / "imagesUn" / "scan0_0001.nii.gz")]},
        "é": {"images": ["$SCANS/scan1_0000.nii.gz", "$SCANS/scan1_0001.nii.gz"]},
    }
    (raw / "unlabeled.json").write_text(json.dumps(entries))
    listed = list_unlabeled(raw, dataset_json(raw))
    assert list(listed) == ["a b.c", "é"]
    assert all(file.is_file() for files in listed.values() for file in files)


def test_without_list_and_folder_there_is_nothing(raw):
    (raw / "imagesUn").rename(raw / "elsewhere")
    assert list_unlabeled(raw, dataset_json(raw)) is None


def test_labeled_scans_from_the_folder_or_from_dataset_json(raw):
    assert list(labeled_scans(raw, dataset_json(raw))) == ["case0", "case1"]
    named = {"x": {"images": ["/there/x.nii.gz"]}, "b": {"images": ["here/b_0000.nii.gz"]}}
    assert labeled_scans(raw, {**dataset_json(raw), "dataset": named}) == {
        "b": [raw / "here" / "b_0000.nii.gz"],
        "x": [Path("/there/x.nii.gz")],
    }


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{}", "names no scan"),
        ("{not json", "is not valid JSON"),
        ("[1]", "is not of the form"),
        ('{"a": {"images": []}}', "entry 'a' is not of the form"),
        ('{"a": {"images": [3]}}', "entry 'a' is not of the form"),
        ('{"a": {"images": ["nowhere_0000.nii.gz"]}}', "'a' names .*nowhere_0000.nii.gz', which does not exist"),
        ('{"case1": {"images": ["imagesUn/scan0_0000.nii.gz"]}}', "case1 is also in .*imagesTr"),
        ('{"test0": {"images": ["imagesUn/scan0_0000.nii.gz"]}}', "test0 is also in .*imagesTs"),
    ],
)
def test_a_bad_list_is_one_clear_error(raw, content, complaint):
    (raw / "unlabeled.json").write_text(content)
    with pytest.raises(DatasetError, match=complaint) as error:
        list_unlabeled(raw, dataset_json(raw))
    assert "unlabeled.json" in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"a": {"images": ["imagesTs/test0_0000.nii.gz"]}}', "a is the same file as .*imagesTs/test0_0000"),
        ('{"a": {"images": ["imagesUn/../imagesTr/case0_0000.nii.gz"]}}', "a is the same file as .*case0_0000"),
        (
            '{"a": {"images": ["imagesUn/scan0_0000.nii.gz"]}, "b": {"images": ["imagesUn/scan0_0000.nii.gz"]}}',
            "b is the same file as that of a",
        ),
    ],
)
def test_a_file_may_not_be_used_twice(raw, content, complaint):
    (raw / "unlabeled.json").write_text(content)
    with pytest.raises(DatasetError, match=complaint):
        list_unlabeled(raw, dataset_json(raw))


def test_a_link_is_the_file_it_leads_to(raw):
    (raw / "link.nii.gz").symlink_to(raw / "imagesTr" / "case0_0000.nii.gz")
    (raw / "elsewhere").symlink_to(raw / "imagesTr")
    for path in ("link.nii.gz", "elsewhere/case0_0000.nii.gz", "imagesUn/../imagesTr/case0_0000.nii.gz"):
        (raw / "unlabeled.json").write_text(json.dumps({"scan": {"images": [path]}}))
        with pytest.raises(DatasetError, match="scan is the same file as .*case0_0000"):
            list_unlabeled(raw, dataset_json(raw))


def test_a_missing_channel_is_named(raw):
    (raw / "imagesUn" / "scan0_0000.nii.gz").unlink()
    with pytest.raises(DatasetError, match="scan0_0001.nii.gz: a channel before it is missing"):
        list_unlabeled(raw, dataset_json(raw))


def test_an_empty_folder_is_an_error(raw):
    for file in (raw / "imagesUn").iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match="imagesUn names no scan"):
        list_unlabeled(raw, dataset_json(raw))


def test_validation_cases_may_not_be_unlabeled(raw):
    (raw / "imagesTs").rename(raw / "imagesVal")
    (raw / "unlabeled.json").write_text('{"test0": {"images": ["imagesUn/scan0_0000.nii.gz"]}}')
    with pytest.raises(DatasetError, match="test0 is also in .*imagesVal"):
        list_unlabeled(raw, dataset_json(raw))


def test_what_else_lies_among_the_test_scans_does_not_matter(raw):
    (raw / "imagesTs" / "odd.nii.gz").touch()
    (raw / "imagesTs" / "notes.txt").touch()
    assert len(list_unlabeled(raw, dataset_json(raw))) == 2


def test_a_missing_imagestr_is_named(raw):
    (raw / "imagesTr").rename(raw / "elsewhere")
    with pytest.raises(DatasetError, match="imagesTr is missing"):
        list_unlabeled(raw, dataset_json(raw))


def test_files_without_a_channel_number_are_named_with_the_fix(raw):
    (raw / "imagesUn" / "odd.nii.gz").touch()
    with pytest.raises(DatasetError, match="odd.nii.gz has no channel number. Rename it to odd_0000.nii.gz"):
        group_channels(raw / "imagesUn", ".nii.gz")


def test_all_problems_come_at_once(raw):
    (raw / "unlabeled.json").write_text(json.dumps({f"c{i}": {"images": [f"gone{i}"]} for i in range(3)}))
    with pytest.raises(DatasetError) as error:
        list_unlabeled(raw, dataset_json(raw))
    assert all(f"gone{i}" in str(error.value) for i in range(3))
