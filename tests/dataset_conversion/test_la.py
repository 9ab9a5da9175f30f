from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.dataset_conversion import la
from nnunetv2_crossmatch.dataset_conversion.common import listed, write_dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.conftest import REAL
from tests.dataset_conversion.conftest import (
    array,
    counts,
    names,
    round_trip,
    scan,
    sha256,
    unlabeled_list,
    write,
    write_h5,
)

TRAIN, TEST = listed("la_train"), listed("la_test")
SPACING = pytest.approx((0.625,) * 3)


def write_nrrd(folder, seed):
    image, label = scan(seed)
    write(image, folder / "lgemri.nrrd", la.SPACING)
    write(255 * (label > 0).astype(np.uint8), folder / "laendo.nrrd", la.SPACING)


def write_community(folder, seed):
    image, label = scan(seed)
    write_h5(folder / "mri_norm2.h5", image.T, (label > 0).T.astype(np.uint8))  # axes x, y, z


@pytest.fixture(params=[write_nrrd, write_community])
def form(request, source):
    for seed, name in enumerate([*TRAIN[:4], TEST[0]]):
        request.param(source / "Training Set" / name, seed)
    return request.param


def test_the_published_lists():
    assert len(TRAIN) == len(set(TRAIN)) == 80 and len(TEST) == len(set(TEST)) == 20 and not set(TRAIN) & set(TEST)
    assert sorted(TRAIN) == TRAIN
    assert (sha256(TRAIN), sha256(TEST)) == ("645317acc681cb17", "6d946d69c6b4de75")


def test_first_names_labeled_same_voxels_in_both_forms(base, source, form, capsys):
    folder = write_dataset(la.convert(source, 2), 8)
    assert names(folder / "imagesTr") == [f"{name}_0000" for name in TRAIN[:2]]
    assert names(folder / "labelsTr") == TRAIN[:2] and names(folder / "labelsUn") == TRAIN[2:4]
    assert names(folder / "imagesTs") == [f"{TEST[0]}_0000"] and names(folder / "labelsTs") == [TEST[0]]
    left_out = [line for line in capsys.readouterr().err.splitlines() if "not here and left out" in line]
    assert [line.partition(":")[0] for line in left_out] == [
        "76 unlabeled scans not here and left out",
        "19 test scans not here and left out",
    ]
    in_file = (folder / "missing_files.txt").read_text().splitlines()
    assert [Path(line).parent.name for line in in_file] == TRAIN[4:] + TEST[1:]
    assert f"{TRAIN[4]}/" in left_out[0] and " and 73 more. All: " in left_out[0]
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{TRAIN[1]}_0000.nii.gz"))
    assert image.GetSpacing() == SPACING
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(1)[0])
    for part, seed in (("Tr", 1), ("Un", 3)):
        np.testing.assert_array_equal(array(folder / f"labels{part}" / f"{TRAIN[seed]}.nii.gz"), scan(seed)[1] > 0)


def test_nrrd_images_without_label_are_used_in_place(base, source):
    for seed, name in enumerate(TRAIN[:3]):
        write_nrrd(source / name, seed)
    (source / TRAIN[2] / "laendo.nrrd").unlink()
    folder = write_dataset(la.convert(source, 1), 8)
    assert unlabeled_list(folder) == {name: source / name / "lgemri.nrrd" for name in TRAIN[1:3]}
    assert not (folder / "imagesUn").exists() and names(folder / "labelsUn") == TRAIN[1:2]


@pytest.mark.parametrize("write_form", [write_nrrd, write_community])
@pytest.mark.slow
def test_round_trip(base, source, write_form):
    for seed, name in enumerate(TRAIN[:5]):
        write_form(source / name, seed)
    folder, done = round_trip(la.convert(source, 3))
    assert done == TRAIN[3:5] and len(names(folder / "labelsTr")) == 3


def test_what_is_missing_is_named(base, source, form):
    file = "lgemri.nrrd" if form is write_nrrd else "mri_norm2.h5"
    (source / "Training Set" / TRAIN[1] / file).unlink()
    found = la.convert(source, 1)
    assert counts(found) == [1, 2, 0, 1]
    assert f"{TRAIN[1]}/{file}" in {f"{path.parent.name}/{path.name}" for path in found.absent["unlabeled scans"]}
    with pytest.raises(DatasetError, match=rf"1 of 2 labeled scans are missing: .*{TRAIN[1]}/{file}\.") as error:
        la.convert(source, 2)
    assert error.value.problems[1:] == ["What is here allows at most --labeled 1."]
    with pytest.raises(DatasetError, match="and 3 more") as error:
        la.convert(source, 9)
    listed_in = base / "raw" / "missing_files.txt"
    assert error.value.problems[1] == f"All missing files: {listed_in}"
    assert [Path(line).parent.name for line in listed_in.read_text().splitlines()] == [TRAIN[1], *TRAIN[4:9]]


def test_one_scan_stays_unlabeled(source):
    for seed, name in enumerate(TRAIN[:3]):
        write_nrrd(source / name, seed)
    with pytest.raises(
        DatasetError, match=r"^\nWhat is here .* --labeled 2, because one scan has to stay unlabeled\.$"
    ):
        la.convert(source, 3)
    assert counts(la.convert(source, 2)) == [2, 1, 0, 0]
    (source / TRAIN[2] / "laendo.nrrd").unlink()  # an unlabeled scan needs none
    assert counts(la.convert(source, 2)) == [2, 1, 0, 0]
    (source / TRAIN[1] / "laendo.nrrd").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 labels .*\nWhat is here allows at most --labeled 1"):
        la.convert(source, 2)


def test_a_missing_label_of_a_labeled_scan(source):
    write_nrrd(source / TRAIN[0], 0)
    (source / TRAIN[0] / "laendo.nrrd").unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 labels of labeled scans are missing: .*laendo.nrrd\."):
        la.convert(source, 1)


@pytest.mark.parametrize("labeled", [0, 80])
def test_some_labeled_and_some_unlabeled(source, form, labeled):
    with pytest.raises(DatasetError, match=f"--labeled {labeled}: there are 80 training scans. Take 1 to 79 of them."):
        la.convert(source, labeled)


def test_a_wrong_folder(base, source, capsys):
    (source / "imagesTr").mkdir()
    (source / "readme.txt").touch()
    with pytest.raises(SystemExit) as error:
        main(["convert", "la", str(source), "-d", "8", "--labeled", "4"])
    said = capsys.readouterr().err
    assert error.value.code == 2 and "lgemri.nrrd or mri_norm2.h5" in said and "Found: imagesTr/, readme.txt" in said
    with pytest.raises(DatasetError, match="is not a folder"):
        la.convert(source / "nowhere", 4)


@pytest.mark.real
def test_real_h5(base, capsys):
    folder = write_dataset(la.convert(REAL / "LA", 4), 8)
    assert [len(names(folder / part)) for part in ("imagesTr", "labelsTr", "imagesUn", "labelsUn")] == [4, 4, 28, 28]
    said = capsys.readouterr().err
    assert "48 unlabeled scans not here" in said and "20 test scans not here" in said
    assert "There is no test scan" in said
    lists = REAL / "LA" / "2018LA_Seg_Training Set"
    assert sorted((lists / "train.list").read_text().split()) == TRAIN
    for labeled in (4, 8, 16):
        assert sorted((lists / f"train_{labeled}_label.list").read_text().split()) == TRAIN[:labeled]
