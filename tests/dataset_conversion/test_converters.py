import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.dataset_conversion import acdc
from tests.conftest import REPOSITORY, make_raw_dataset, use_folders

REAL = REPOSITORY.parent / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    use_folders(tmp_path, monkeypatch.setenv)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(f.name.removesuffix(".nii.gz") for f in folder.iterdir()) if folder.is_dir() else []


def write_h5(file: Path, shape: tuple[int, ...], seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with h5py.File(file, "w") as content:
        content["image"] = rng.integers(0, 255, shape).astype(np.uint8)
        content["label"] = rng.integers(0, 2, shape).astype(np.uint8)


@pytest.fixture
def la_source(tmp_path) -> Path:
    source = tmp_path / "LA source"
    train, test = [f"S{i}" for i in (3, 1, 2, 0)], ["T0"]
    for i, scan in enumerate(train + test):
        write_h5(source / scan / "mri_norm2.h5", (5, 6, 7), i)
    (source / "train.list").write_text("\n".join(train) + "\n")
    (source / "test.list").write_text("\n".join(test))
    return source


def test_la_takes_the_first_names_of_the_sorted_list(base, la_source):
    main(["convert", "la", str(la_source), "-d", "8", "--labeled", "2"])
    folder = base / "raw" / "Dataset008_LA"
    assert names(folder / "imagesTr") == ["S0_0000", "S1_0000"] and names(folder / "labelsTr") == ["S0", "S1"]
    assert names(folder / "imagesUn") == ["S2_0000", "S3_0000"] and names(folder / "labelsUn") == ["S2", "S3"]
    assert names(folder / "imagesTs") == ["T0_0000"] and names(folder / "labelsTs") == ["T0"]
    image = sitk.ReadImage(str(folder / "imagesUn" / "S2_0000.nii.gz"))
    assert image.GetSize() == (5, 6, 7) and image.GetSpacing() == pytest.approx((0.625,) * 3)
    with h5py.File(la_source / "S2" / "mri_norm2.h5") as content:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), content["image"][()].transpose(2, 1, 0))
    splits = json.loads((base / "preprocessed" / "Dataset008_LA" / "splits_final.json").read_text())
    assert [split["val"] for split in splits] in ([["S0"], ["S1"]], [["S1"], ["S0"]])


def test_a_missing_labelled_scan_is_an_error_and_others_are_named(base, la_source, capsys):
    (la_source / "S3" / "mri_norm2.h5").unlink()
    (la_source / "T0" / "mri_norm2.h5").unlink()
    main(["convert", "la", str(la_source), "-d", "8", "--labeled", "1"])
    said = capsys.readouterr().err
    assert "S3" in said and "unlabelled scan" in said and "T0" in said and "test scan" in said
    (la_source / "S0" / "mri_norm2.h5").unlink()
    with pytest.raises(SystemExit) as error:
        main(["convert", "la", str(la_source), "-d", "9", "--labeled", "1"])
    assert error.value.code == 2 and "S0" in capsys.readouterr().err
    assert not (base / "raw" / "Dataset009_LA").exists()


@pytest.mark.parametrize("labeled", ["0", "4"])
def test_la_needs_some_labelled_and_some_unlabelled(base, la_source, labeled, capsys):
    with pytest.raises(SystemExit):
        main(["convert", "la", str(la_source), "-d", "8", "--labeled", labeled])
    assert "train.list has 4 scans" in capsys.readouterr().err


def test_acdc_keeps_patients_together(base, tmp_path):
    source = tmp_path / "ACDC"
    volumes = [f"{p}_frame{f}" for p in (*acdc.LABELED[:3], "patient001") for f in ("01", "02")]
    for i, volume in enumerate([*volumes, "patient002_frame01"]):
        write_h5(source / "data" / f"{volume}.h5", (3, 6, 7), i)
    (source / "train.list").write_text("\n".join(volumes))
    (source / "val.list").write_text("patient002_frame01\n")
    main(["convert", "acdc", str(source), "-d", "27", "--labeled", "3"])
    folder = base / "raw" / "Dataset027_ACDC"
    assert len(names(folder / "imagesTr")) == 6
    assert names(folder / "imagesUn") == ["patient001_frame01_0000", "patient001_frame02_0000"]
    assert names(folder / "labelsVal") == ["patient002_frame01"] and not (folder / "imagesTs").exists()
    image = sitk.ReadImage(str(folder / "imagesUn" / "patient001_frame01_0000.nii.gz"))
    assert image.GetSize() == (7, 6, 3) and image.GetSpacing() == (1.5, 1.5, 10.0)
    splits = json.loads((base / "preprocessed" / "Dataset027_ACDC" / "splits_final.json").read_text())
    assert len(splits) == 3
    assert all(len({case.split("_")[0] for case in split["val"]}) == 1 for split in splits)
    with pytest.raises(SystemExit):
        main(["convert", "acdc", str(source), "-d", "28", "--labeled", "2"])


def test_nifti_copies_no_unlabelled_image_and_nests_the_labelled(base, tmp_path):
    source = tmp_path / "My scans"
    make_raw_dataset(source, labeled=8, unlabeled=0)
    for file in (source / "imagesTr").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    for labeled in (2, 4):
        main(["convert", "nifti", str(source), "-d", str(labeled), "--labeled", str(labeled), "--test", "2"])
    few, more = base / "raw" / "Dataset002_Myscans", base / "raw" / "Dataset004_Myscans"
    assert set(names(few / "imagesTr")) < set(names(more / "imagesTr"))
    assert names(few / "labelsTs") == names(more / "labelsTs")
    unlabeled = json.loads((few / "unlabeled.json").read_text())
    assert len(unlabeled) == 4 and not (few / "imagesUn").exists()
    assert all(Path(entry["images"][0]).parent == source / "imagesTr" for entry in unlabeled.values())
    assert names(few / "labelsUn") == sorted(unlabeled)
    assert json.loads((few / "dataset.json").read_text())["labels"] == {"background": 0, "shell": 1, "core": 2}
    (source / "dataset.json").write_text('{"modality": {"0": "CT"}, "labels": {"0": "background", "1": "a", "2": "b"}}')
    main(["convert", "nifti", str(source), "-d", "5", "--labeled", "2"])
    described = json.loads((base / "raw" / "Dataset005_Myscans" / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert described["labels"] == {"background": 0, "a": 1, "b": 2}
    (source / "dataset.json").unlink()
    main(["convert", "nifti", str(source), "-d", "6", "--labeled", "2"])
    described = json.loads((base / "raw" / "Dataset006_Myscans" / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "class1": 1, "class2": 2}
    with pytest.raises(SystemExit):
        main(["convert", "nifti", str(source), "-d", "2", "--labeled", "2"])  # exists


@real
def test_real_hippocampus(base):
    main(["convert", "nifti", str(REAL / "Hippocampus"), "-d", "4", "--labeled", "4", "--test", "40"])
    folder = base / "raw" / "Dataset004_Hippocampus"
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "class1": 1, "class2": 2}
    assert [len(names(folder / part)) for part in ("labelsTr", "labelsTs", "labelsUn")] == [4, 40, 155]
    for file in (folder / "labelsUn").iterdir():
        assert sitk.ReadImage(str(file)).GetPixelID() == sitk.sitkUInt8


@real
def test_real_la_names_the_scans_that_are_not_there(base, capsys):
    main(["convert", "la", str(REAL / "LA" / "2018LA_Seg_Training Set"), "-d", "8", "--labeled", "4"])
    assert len(names(base / "raw" / "Dataset008_LA" / "imagesTr")) == 4
    assert len(names(base / "raw" / "Dataset008_LA" / "imagesUn")) == 28
    assert capsys.readouterr().err.count("missing, left out") == 48 + 20


@real
def test_real_acdc(base):
    main(["convert", "acdc", str(REAL / "ACDC"), "-d", "27", "--labeled", "3"])
    folder = base / "raw" / "Dataset027_ACDC"
    assert [len(names(folder / part)) for part in ("imagesTr", "imagesUn", "imagesVal")] == [6, 134, 20]
