import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.dataset_conversion import acdc
from nnunetv2_crossmatch.dataset_conversion.common import write_dataset
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


def write_patient(database, number, ed=1, es=12, ending=".nii.gz", gt=True):
    """As in the database: two frames with labels, one more frame in a 4D file, Info.cfg."""
    patient = f"patient{number:03d}"
    folder = database / ("training" if number <= 100 else "testing") / patient
    for frame in (ed, es):
        image, label = scan(100 * number + frame)
        write(image, folder / f"{patient}_frame{frame:02d}{ending}", (1.5, 1.5, 10))
        if gt:
            write(label, folder / f"{patient}_frame{frame:02d}_gt{ending}", (1.5, 1.5, 10))
    write(np.stack([image, image]), folder / f"{patient}_4d{ending}", (1.5, 1.5, 10, 1))
    (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")


def write_community(source, *numbers):
    for number in numbers:
        for frame in (1, 2):
            write_h5(source / "data" / f"patient{number:03d}_frame{frame:02d}.h5", *scan(100 * number + frame))


def test_the_published_lists():
    assert [len(part) for part in (acdc.TRAIN, acdc.VALIDATION, acdc.TEST, acdc.OFFICIAL)] == [70, 10, 20, 50]
    assert sorted((*acdc.TRAIN, *acdc.VALIDATION, *acdc.TEST)) == list(range(1, 101))
    assert set(acdc.LABELED) <= set(acdc.TRAIN)
    assert [sha256(p) for p in (acdc.TRAIN, acdc.VALIDATION, acdc.TEST)] == [
        "4c060ea68f4c4811",
        "76712187d408937c",
        "b4d4cb22dead13ff",
    ]


def test_database_frames_of_info_cfg_and_the_official_test_set(base, source):
    for number in (99, 38, 50, 3, 2, 1, 101):
        write_patient(source / "database", number)
    write_patient(source / "database", 90, ed=11, es=3)
    write_patient(source / "database", 150, gt=False)
    folder = write_dataset(acdc.convert(source, 3), 27)
    patients = ("patient038", "patient050", "patient099")
    assert names(folder / "labelsTr") == [f"{p}_frame{f}" for p in patients for f in ("01", "12")]
    assert names(folder / "labelsVal") == ["patient002_frame01", "patient002_frame12"]
    assert names(folder / "labelsTs") == ["patient001_frame01", "patient001_frame12"]
    assert len(names(folder / "imagesTs_official")) == 4
    assert names(folder / "labelsTs_official") == ["patient101_frame01", "patient101_frame12"]
    in_file = (folder / "missing_files.txt").read_text().split()
    absent = [f"labelsTs_official/patient150_frame{frame}.nii.gz" for frame in ("01", "12")]
    assert in_file[-2:] == [str(folder / name) for name in absent]
    assert sum("patient004" in line for line in in_file) == 1
    unlabeled = unlabeled_list(folder)
    assert sorted(unlabeled) == [f"patient0{f}" for f in ("03_frame01", "03_frame12", "90_frame03", "90_frame11")]
    assert all(file.parent.name == case.split("_")[0] and file.exists() for case, file in unlabeled.items())
    np.testing.assert_array_equal(array(folder / "labelsTr" / "patient038_frame12.nii.gz"), scan(3812)[1])
    image = sitk.ReadImage(str(folder / "imagesTr" / "patient038_frame12_0000.nii.gz"))
    assert image.GetSpacing() == (1.5, 1.5, 10.0)
    splits = json.loads((base / "preprocessed" / folder.name / "splits_final.json").read_text())
    assert len(splits) == 3
    assert all(len({case.split("_")[0] for case in split["val"]}) == 1 for split in splits)


@pytest.mark.slow
def test_round_trip_of_zipped_and_plain_nifti(base, source):
    for number, ending in ((99, ".nii.gz"), (38, ".nii"), (50, ".nii.gz"), (3, ".nii.gz"), (4, ".nii")):
        write_patient(source, number, ending=ending)
    _, done = round_trip(acdc.convert(source, 3))
    assert done == [f"patient{p}_frame{f}" for p in ("003", "004") for f in ("01", "12")]


def test_community_h5(base, source):
    write_community(source, 99, 3, 2)
    folder = write_dataset(acdc.convert(source, 1), 27)
    assert names(folder / "imagesTr") == ["patient099_frame01_0000", "patient099_frame02_0000"]
    assert names(folder / "imagesUn") == ["patient003_frame01_0000", "patient003_frame02_0000"]
    assert names(folder / "labelsVal") == ["patient002_frame01", "patient002_frame02"]
    image = sitk.ReadImage(str(folder / "imagesUn" / "patient003_frame02_0000.nii.gz"))
    assert image.GetSpacing() == (1.5, 1.5, 10.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), scan(302)[0])


def test_what_is_missing_is_named(source):
    write_patient(source, 99)
    write_patient(source, 3)
    (source / "training" / "patient003" / "patient003_frame12.nii.gz").unlink()
    found = acdc.convert(source, 1)
    assert counts(found) == [2, 1, 0, 0]
    absent = {what: [file.name for file in files] for what, files in found.absent.items()}
    assert "patient003_frame12.nii.gz" in absent["unlabeled volumes"]
    assert absent["validation volumes"] == ["Info.cfg"] * 10
    with pytest.raises(DatasetError, match=r"of \d labeled volumes are missing: .*patient038/Info.cfg"):
        acdc.convert(source, 3)
    for number in (38, 50):
        write_patient(source, number, gt=number == 38)
    with pytest.raises(DatasetError, match=r"2 of 6 labels of labeled .*\nWhat is here allows at most --labeled 1"):
        acdc.convert(source, 3)
    (source / "training" / "patient099" / "patient099_frame01_gt.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"labels of labeled volumes are missing: .*patient099_frame01_gt.nii.gz"):
        acdc.convert(source, 1)


def test_bad_input(source):
    with pytest.raises(DatasetError, match="published lists have"):
        acdc.convert(source, 2)
    with pytest.raises(DatasetError, match=r"expected training/patientNNN/Info.cfg .* Found: nothing"):
        acdc.convert(source, 3)
    write_patient(source, 99)
    (source / "training" / "patient099" / "Info.cfg").write_text("ED: 1\n")
    with pytest.raises(DatasetError, match="does not say which frames are ED and ES"):
        acdc.convert(source, 1)


@pytest.mark.real
def test_real_h5(base, capsys):
    main(["convert", "acdc", str(REAL / "ACDC"), "-d", "27", "--labeled", "3"])
    folder = base / "raw" / "Dataset027_ACDC"
    warnings = capsys.readouterr().err
    for frame in ("frame01", "frame02"):
        assert f"The same image: unlabeled/patient074_{frame} = unlabeled/patient076_{frame}." in warnings
    assert [len(names(folder / part)) for part in ("imagesTr", "imagesUn", "imagesVal")] == [6, 134, 20]
    train = (REAL / "ACDC" / "train.list").read_text().split()
    validation = (REAL / "ACDC" / "val.list").read_text().split()
    assert {int(name[7:10]) for name in train} == set(acdc.TRAIN)
    assert {int(name[7:10]) for name in validation} == set(acdc.VALIDATION)
    for labeled in acdc.PUBLISHED:
        slices = (REAL / "ACDC" / "splits" / str(labeled) / "labeled.txt").read_text().split()
        assert {int(name.split("patient")[1][:3]) for name in slices} == set(acdc.LABELED[:labeled])
    ventricle = {
        f.name: (array(f) == 3).sum() for part in ("Tr", "Un", "Val") for f in (folder / f"labels{part}").iterdir()
    }
    assert len(ventricle) == 160
    for name, size in ventricle.items():  # ED is the larger one
        assert size > ventricle[name.replace("frame01", "frame02")] or "frame02" in name
