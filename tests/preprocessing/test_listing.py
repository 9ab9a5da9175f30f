import json
import os
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from nnunetv2_crossmatch.preprocessing.image_folder import group_channels
from nnunetv2_crossmatch.preprocessing.listing import (
    labeled_and_held_out,
    labeled_scans,
    left_out,
    list_unlabeled,
    nearly_unlabeled,
)
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
    with pytest.raises(DatasetError, match="1 without channel number .*Rename odd.nii.gz to odd_0000.nii.gz"):
        group_channels(raw / "imagesUn", dataset_json(raw))


def named(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / f"{name}.nii.gz").touch()
    return folder


def what_is_wrong(folder, raw):
    with pytest.raises(DatasetError) as error:
        group_channels(folder, dataset_json(raw))
    return str(error.value)


def test_channels_that_count_from_1_are_called_that(raw):
    folder = named(raw / "imagesA", "a_0001", "a_0002", "b_0001", "b_0002")
    assert what_is_wrong(folder, raw).strip() == (
        f"{folder}: channels count from 0. Rename of every case, in this order: _0001 to _0000, _0002 to _0001."
    )


def test_a_single_channel_may_count_from_1_too(single):
    wrong = what_is_wrong(named(single / "imagesA", "a_0001", "b_0001"), single)
    assert wrong.endswith("channels count from 0. Rename of every case, in this order: _0001 to _0000.")


@pytest.mark.parametrize(
    "names",
    [("a_0001", "a_0002", "b_0002"), ("a_0001", "a_0002", "b"), ("a_0007", "b_0003"), ("a_0001", "a_0002")],
)
def test_no_loop_makes_one_case_of_each_channel(raw, names):
    assert what_is_wrong(named(raw / "imagesA", *names), raw).endswith(
        "Call a case's channels CASE_0000.nii.gz to CASE_0001.nii.gz, or one file of all CASE_0000.nii.gz."
    )


def test_files_without_any_number_are_renamed_by_a_loop(raw):
    assert "; do mv " in what_is_wrong(named(raw / "imagesA", "a", "b"), raw)


def test_all_problems_come_at_once(raw):
    (raw / "unlabeled.json").write_text(json.dumps({f"c{i}": {"images": [f"gone{i}"]} for i in range(3)}))
    with pytest.raises(DatasetError) as error:
        list_unlabeled(raw, dataset_json(raw))
    assert all(f"gone{i}" in str(error.value) for i in range(3))


@pytest.fixture
def single(tmp_path):
    make_raw_dataset(tmp_path / "D", labeled=2, unlabeled=3, test=1)
    return tmp_path / "D"


def held_out(raw, part):
    return {c: [f.name for f in fs] for c, fs in labeled_and_held_out(raw, dataset_json(raw))[part].items()}


@pytest.mark.parametrize("numbers", [(1, 4, 17), (0, 1, 2), (7,)])
def test_a_number_that_is_no_channel_belongs_to_the_name(single, numbers):
    (single / "imagesVa").mkdir()
    names = [f"amos_{number:04d}" for number in numbers]
    for name in (*names, "x"):
        (single / "imagesVa" / f"{name}.nii.gz").touch()
    (single / "imagesVa" / "right_0000.nii.gz").touch()
    expected = {name: [f"{name}.nii.gz"] for name in (*names, "x")} | {"right": ["right_0000.nii.gz"]}
    assert held_out(single, "imagesVa") == expected
    assert left_out(single, dataset_json(single)) == []

    for file in (single / "imagesUn").iterdir():
        file.unlink()
    for name in names:
        (single / "imagesUn" / f"{name}.nii.gz").touch()
    with pytest.raises(DatasetError, match=f"{len(names)} without channel number .*Rename {names[0]}.nii.gz to "):
        list_unlabeled(single, dataset_json(single))
    with pytest.raises(DatasetError) as error:
        list_unlabeled(single, dataset_json(single))
    subprocess.run(["bash", "-c", str(error.value).partition("All of them: ")[2]], check=True)
    with pytest.raises(DatasetError, match=f"{names[0]} is also in .*imagesVa"):
        list_unlabeled(single, dataset_json(single))
    shutil.rmtree(single / "imagesVa")
    assert list(list_unlabeled(single, dataset_json(single))) == names


def test_all_channels_of_a_held_out_scan_are_one_case(raw):
    shutil.copy(raw / "imagesTs" / "test0_0001.nii.gz", raw / "imagesTs" / "half_0001.nii.gz")
    assert held_out(raw, "imagesTs") == {
        "half_0001": ["half_0001.nii.gz"],
        "test0": ["test0_0000.nii.gz", "test0_0001.nii.gz"],
    }


def test_a_color_picture_is_one_file_of_three_channels(tmp_path):
    described = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}
    for part in ("imagesTr", "imagesUn", "imagesTs"):
        (tmp_path / "D" / part).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "D" / part / f"{part}{i}_0000.png").touch()
    parts = labeled_and_held_out(tmp_path / "D", described)
    parts["imagesUn"] = list_unlabeled(tmp_path / "D", described)
    for part in ("imagesTr", "imagesTs", "imagesUn"):
        assert list(parts[part]) == [f"{part}{i}" for i in range(3)]
    assert left_out(tmp_path / "D", described) == []


def test_what_is_not_used_is_named_in_every_folder(single):
    for folder in ("imagesTr", "imagesUn", "imagesTs", "imagesVal"):
        (single / folder / "deep").mkdir(parents=True)
        (single / folder / "deep" / "case_0000.nii.gz").touch()
        (single / folder / "odd.nrrd").touch()
    (single / "imagesUn.zip").touch()
    (single / "ImagesTs").mkdir()
    assert len(list_unlabeled(single, dataset_json(single))) == 3
    lines = left_out(single, dataset_json(single))
    for folder in ("imagesTr", "imagesUn", "imagesTs", "imagesVal"):
        deep, odd = [line for line in lines if line.startswith(f"{single / folder}: ")]
        assert "1 .nii.gz files not used" in deep and "deep/case_0000.nii.gz" in deep and "odd.nrrd" in odd
    assert f"{single / 'imagesUn.zip'} is not a folder and not used." in lines
    assert f"{single / 'ImagesTs'} is not imagesTs: upper and lower case count. Rename it." in lines
    assert len(lines) == 10


def test_the_line_that_lists_a_folder_per_patient_does(single):
    for i, file in enumerate(sorted((single / "imagesUn").iterdir())):
        (single / "imagesUn" / f"p{i}").mkdir()
        file.rename(single / "imagesUn" / f"p{i}" / "t1_0000.nii.gz")
    with pytest.raises(DatasetError, match=r"imagesUn names no scan.*\n.*3 .nii.gz files not used") as error:
        list_unlabeled(single, dataset_json(single))
    entry = str(error.value).partition(" as: ")[2]
    (single / "unlabeled.json").write_text(f"{{{entry}}}")
    assert list_unlabeled(single, dataset_json(single)) == {"p0_t1": [single / "imagesUn" / "p0" / "t1_0000.nii.gz"]}
    (line,) = left_out(single, dataset_json(single))
    assert "2 files not used (p1/t1_0000.nii.gz, p2/t1_0000.nii.gz), because" in line and "unlabeled.json" in line


def test_a_list_and_links_to_what_it_lists_leave_nothing_out(single, tmp_path):
    (single / "imagesUn").rename(tmp_path / "elsewhere")
    (single / "imagesUn").mkdir()
    for file in (tmp_path / "elsewhere").iterdir():
        (single / "imagesUn" / file.name).symlink_to(file)
    assert len(list_unlabeled(single, dataset_json(single))) == 3
    assert left_out(single, dataset_json(single)) == []
    for folder in ("imagesUn", tmp_path / "elsewhere"):
        entries = {f"s{i}": {"images": [f"{folder}/scan{i}_0000.nii.gz"]} for i in range(3)}
        (single / "unlabeled.json").write_text(json.dumps(entries))
        assert len(list_unlabeled(single, dataset_json(single))) == 3
        assert left_out(single, dataset_json(single)) == []


@pytest.mark.parametrize("listed", [False, True])
def test_a_name_that_is_no_unicode_is_named(single, listed):
    name = os.fsdecode(b"M\xfcller_0000.nii.gz")
    shutil.copy(single / "imagesUn" / "scan0_0000.nii.gz", single / "imagesUn" / name)
    if listed:
        (single / "unlabeled.json").write_text(json.dumps({"m": {"images": [f"imagesUn/{name}"]}}))
    with pytest.raises(DatasetError, match="no valid Unicode|is not valid Unicode") as error:
        list_unlabeled(single, dataset_json(single))
    assert str(error.value).encode()


@pytest.mark.parametrize("named", [[], {"a": ["x"]}, {"a": {"images": "x"}}])
def test_a_malformed_dataset_of_dataset_json_is_named(single, named):
    with pytest.raises(DatasetError, match=r"dataset.json: dataset.* is not of the form"):
        labeled_scans(single, {**dataset_json(single), "dataset": named})


def test_twins_that_look_the_same_are_told_apart_and_said_once(raw):
    composed, decomposed = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    images = {composed: "imagesUn/scan0_0000.nii.gz", decomposed: "imagesUn/scan1_0000.nii.gz"}
    (raw / "unlabeled.json").write_text(json.dumps({case: {"images": [image]} for case, image in images.items()}))
    with pytest.raises(DatasetError) as error:
        list_unlabeled(raw, dataset_json(raw))
    (line,) = error.value.problems
    assert ascii(composed) in line
    assert ascii(decomposed) in line


@pytest.mark.parametrize("name", ["imagesUnlabeled", "images_unlabelled", "Unlabeled", "unlabled", "imagesU"])
def test_a_folder_called_nearly_imagesUn_is_named(single, name):
    for legal in (
        "imagesVal",
        "imagesTs_official",
        "labelsUn",
        "labeled",
        "imagesLabeled",
        "hidden_labels",
        "imagesUn2",
    ):
        (single / legal).mkdir()
    (single / "unlabeled.zip").touch()
    assert nearly_unlabeled(single) == []
    (single / name).mkdir()
    (line,) = nearly_unlabeled(single)
    assert line.startswith(f"{single / name}: ") and "Did you mean imagesUn?" in line
