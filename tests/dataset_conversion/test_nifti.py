import json

import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.dataset_conversion import nifti
from nnunetv2_crossmatch.dataset_conversion.common import write_dataset
from tests.conftest import REAL, make_raw_dataset
from tests.dataset_conversion.conftest import counts, names, unlabeled_list


@pytest.fixture
def scans(tmp_path):
    source = tmp_path / "My scans"
    make_raw_dataset(source, labeled=8, unlabeled=0)
    for file in (source / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    return source


def described(folder) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_no_unlabeled_image_is_copied_and_the_labeled_are_nested(base, scans, capsys):
    for labeled in (2, 4):
        main(["convert", "nifti", str(scans), "-d", str(labeled), "--labeled", str(labeled), "--test", "2"])
    few, more = base / "raw" / "Dataset002_Myscans", base / "raw" / "Dataset004_Myscans"
    assert set(names(few / "imagesTr")) < set(names(more / "imagesTr"))
    assert names(few / "labelsTs") == names(more / "labelsTs")
    unlabeled = unlabeled_list(few)
    assert len(unlabeled) == 4 and not (few / "imagesUn").exists()
    assert all(file.parent == scans / "imagesTr" for file in unlabeled.values())
    assert names(few / "labelsUn") == sorted(unlabeled)
    assert described(few)["labels"] == {"background": 0, "shell": 1, "core": 2}
    with pytest.raises(SystemExit):
        main(["convert", "nifti", str(scans), "-d", "2", "--labeled", "2"])  # exists
    assert "Dataset id 2 is taken" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "nifti", str(scans), "-d", "9", "--labeled", "2", "--duplicates"])
    assert "--duplicates: nifti has no such option" in capsys.readouterr().err


def test_labels_and_channels_of_the_decathlon_of_nnunet_and_of_neither(base, scans):
    description = scans / "dataset.json"
    description.write_text('{"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a", "2": "b"}}')
    folder = write_dataset(nifti.convert(scans, 2), 5)
    assert described(folder)["channel_names"] == {"0": "CT"}
    assert described(folder)["labels"] == {"background": 0, "a": 1, "b": 2}
    description.write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}')
    assert described(write_dataset(nifti.convert(scans, 2), 6))["labels"]["whole"] == [1, 2]
    description.unlink()
    labels = described(write_dataset(nifti.convert(scans, 2), 7))["labels"]
    assert labels == {"background": 0, "class1": 1, "class2": 2}
    (scans / "labelsTr" / "._case0.nii.gz").write_bytes(b"\0\5\x16\7")  # of a Mac
    for file in (scans / "labelsTr").glob("case*"):
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32) * 0.99999994, str(file))
    assert described(write_dataset(nifti.convert(scans, 2), 8))["labels"] == labels


def test_what_is_not_converted_is_named(base, scans, capsys):
    for name in ("case9.nii", ".DS_Store"):
        (scans / "imagesTr" / name).touch()
    (scans / "imagesTr" / "more").mkdir()
    assert sum(counts(nifti.convert(scans, 2))) == 8
    of_others, of_system, deep = capsys.readouterr().err.splitlines()
    assert "1 not used (case9.nii)" in of_others and ".DS_Store" in of_system and "more is a folder" in deep


@pytest.mark.real
def test_real_hippocampus(base):
    conversion = nifti.convert(REAL / "Hippocampus", 4, 40)
    assert counts(conversion) == [4, 155, 0, 40]
    folder = write_dataset(conversion, 4)
    assert described(folder)["labels"] == {"background": 0, "class1": 1, "class2": 2}
    assert [len(names(folder / part)) for part in ("labelsTr", "labelsTs", "labelsUn")] == [4, 40, 155]
    for file in (folder / "labelsUn").iterdir():  # two of the originals are float32
        assert sitk.ReadImage(str(file)).GetPixelID() == sitk.sitkUInt8
