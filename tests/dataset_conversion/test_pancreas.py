import locale
import random
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion import pancreas
from nnunetv2_crossmatch.dataset_conversion.common import write_dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.dataset_conversion.conftest import array, counts, names, round_trip, sha256, write_h5

SPACING = (0.7, 0.7, 1.0)
ORIGIN = (-120.0, -95.5, -310.0)


def ct(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Fat with a soft-tissue block in front (low row); HU, z y x."""
    rng = np.random.default_rng(seed)
    label = np.zeros((14, 20, 22), np.uint8)
    label[3:9, 2:8, 5:16] = 1
    return (140 * label.astype(float) - 150 + rng.integers(-20, 20, label.shape)).astype(np.int16), label


def write_series(folder, image, series="1.2.826.1", ascending=True, drop=(), prefix="1-"):
    """CT slices, one file each, stored with an intercept; the names are in another order than the positions."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
    numbers = list(range(len(image)))
    random.Random(0).shuffle(numbers)
    for k, number in enumerate(numbers):
        if k in drop:
            continue
        piece = sitk.GetImageFromArray(image[k])
        piece.SetSpacing(SPACING[:2])
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": "1.2.826.0",
            "0020|000e": series,
            "0020|0013": str(k + 1 if ascending else len(image) - k),
            "0020|0032": "\\".join(map(str, (*ORIGIN[:2], ORIGIN[2] + SPACING[2] * k))),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{prefix}{number:03d}.dcm"))
        writer.Execute(piece)
    locale.setlocale(locale.LC_ALL, before)  # writing DICOM leaves the process in the C locale


def write_label(source, number, label, ending=".nii.gz"):
    """Stored in the order of the DICOM pixels; by its header, y would run the other way."""
    image = sitk.GetImageFromArray(label)
    image.SetSpacing(SPACING)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    folder = source / "TCIA_pancreas_labels-02-05-2017"
    folder.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(folder / f"label{number:04d}{ending}"))


def write_case(source, number, **options):
    image, label = ct(number)
    study = source / "manifest-1" / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015-PANCREAS"
    write_series(study / f"Pancreas-{number:05d}", image, **options)
    write_label(source, number, label if options.get("ascending", True) else label[::-1])


def test_the_published_lists():
    assert (len(pancreas.TRAIN_82), len(pancreas.TEST_82)) == (62, 20)
    assert (len(pancreas.TRAIN_80), len(pancreas.TEST_80)) == (62, 18)
    assert sorted(pancreas.TRAIN_82 + pancreas.TEST_82) == list(range(1, 83))
    assert sorted(pancreas.TRAIN_80 + pancreas.TEST_80) == sorted(set(range(1, 83)) - {25, 70})
    assert (sha256(pancreas.TRAIN_82), sha256(pancreas.TEST_82)) == ("dee01bb6ae49749d", "06a7fe539148330f")


@pytest.mark.parametrize("ascending", [True, False])
def test_dicom_and_labels_meet_on_the_dicom_grid(base, source, ascending):
    for number in (1, 2, 3, 64):
        write_case(source, number, ascending=ascending)
    folder = write_dataset(pancreas.convert(source, 2), 82)
    assert names(folder / "imagesTr") == ["pancreas_0001_0000", "pancreas_0002_0000"]
    assert names(folder / "imagesUn") == ["pancreas_0003_0000"] and names(folder / "labelsUn") == ["pancreas_0003"]
    assert names(folder / "labelsTs") == ["pancreas_0064"]
    image, label = ct(2)
    written = sitk.ReadImage(str(folder / "imagesTr" / "pancreas_0002_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), image)  # in HU
    np.testing.assert_array_equal(array(folder / "labelsTr" / "pancreas_0002.nii.gz"), label)
    assert written.GetSpacing() == pytest.approx(SPACING) and written.GetOrigin() == pytest.approx(ORIGIN)
    on_label = sitk.ReadImage(str(folder / "labelsTr" / "pancreas_0002.nii.gz"))
    assert on_label.GetDirection() == pytest.approx(written.GetDirection())


@pytest.mark.parametrize(("removed", "expected"), [((), (61, 19)), ((25, 70), (62, 18))])
def test_82_or_80_cases(source, removed, expected, capsys):
    for number in sorted(set(range(1, 83)) - set(removed)):
        write_h5(source / "Pancreas_h5" / f"image{number:04d}_norm.h5", np.zeros(1), np.zeros(1))
    conversion = pancreas.convert(source, 12)
    labeled, unlabeled, _, test = counts(conversion)
    assert (labeled + unlabeled, test) == expected and labeled == 12
    assert ("the same scan as #2" in capsys.readouterr().err) == (not removed)
    ids = {case.id for case in (*conversion.labeled, *conversion.unlabeled, *conversion.test)}
    assert not ids & {"pancreas_0025", "pancreas_0070"}
    if not removed:
        published = pancreas.convert(source, 12, duplicates=True)
        assert counts(published) == [12, 50, 0, 20]
        assert {
            c.id for c in (*published.labeled, *published.unlabeled, *published.test) if c.patient == "pancreas_0002"
        } == {
            "pancreas_0002",
            "pancreas_0025",
            "pancreas_0070",
        }


def test_empty_folders_of_removed_cases_are_no_cases(source):
    for number in (1, 2):
        write_case(source, number)
    (source / "manifest-1" / "Pancreas-CT" / "PANCREAS_0025").mkdir()
    assert [case.id for case in pancreas.convert(source, 1).labeled] == ["pancreas_0001"]


@pytest.mark.slow
def test_round_trip_of_dicom(base, source):
    for number in range(1, 6):
        write_case(source, number)
    _, done = round_trip(pancreas.convert(source, 3))
    assert done == ["pancreas_0004", "pancreas_0005"]


def test_community_h5(base, source):
    for number in (1, 2, 64):
        image, label = ct(number)
        write_h5(source / f"{number:04d}.h5", image.T, label.T)  # CoraNet's names; axes x, y, z
    folder = write_dataset(pancreas.convert(source, 1), 82)
    image, label = ct(1)
    np.testing.assert_array_equal(array(folder / "imagesTr" / "pancreas_0001_0000.nii.gz"), image)
    np.testing.assert_array_equal(array(folder / "labelsTr" / "pancreas_0001.nii.gz"), label)


def series_folder(source, number=1):
    return source / "manifest-1" / "Pancreas-CT" / f"PANCREAS_{number:04d}"


def convert_bad(source, match):
    write_case(source, 2)
    with pytest.raises(DatasetError, match=match):
        write_dataset(pancreas.convert(source, 1), 82)


def test_a_missing_slice(base, source):
    write_case(source, 1, drop=(6,))
    convert_bad(source, r"PANCREAS_0001: slices are missing: they lie 1 mm apart, .* at -305 and -303 mm")
    assert not any((base / "raw").glob("Dataset*"))


def test_a_missing_last_slice_shows_in_the_label(base, source):
    write_case(source, 1, drop=(13,))
    convert_bad(source, r"label0001.nii.gz: the image has \(22, 20, 13\) voxels .* its label \(22, 20, 14\)")


def test_mixed_series(base, source):
    write_case(source, 1)
    write_series(next(series_folder(source).rglob("Pancreas-*")), ct(5)[0], series="1.2.826.2", prefix="2-")
    convert_bad(source, r"PANCREAS_0001: one DICOM series was expected, 2 found: .* 14 files, .* 14 files. Move")


def test_every_slice_twice(base, source):
    write_case(source, 1)
    for file in list(series_folder(source).rglob("*.dcm")):
        shutil.copy(file, file.with_name(f"{file.stem} (1).dcm"))
    convert_bad(source, "PANCREAS_0001: slices are there twice: .* and 11 more. Remove one of each")


def test_one_file_with_every_slice(base, source):
    write_case(source, 1)
    place = next(series_folder(source).rglob("Pancreas-*"))
    shutil.rmtree(place)
    place.mkdir()
    locale_before = locale.setlocale(locale.LC_ALL)
    sitk.WriteImage(sitk.GetImageFromArray(ct(1)[0].astype(np.uint16)), str(place / "enhanced.dcm"))
    locale.setlocale(locale.LC_ALL, locale_before)
    convert_bad(source, r"enhanced.dcm holds all 14 slices \(multi-frame DICOM\). Split it")


def test_what_a_mac_adds_to_an_archive_and_files_without_an_ending(base, source):
    for number in (1, 2, 64):
        write_case(source, number)
        for file in list(series_folder(source, number).rglob("*.dcm")):
            file.rename(file.with_name(file.stem.replace("-", "")))
    resources = source / "__MACOSX" / "manifest-1" / "Pancreas-CT" / "PANCREAS_0001" / "Pancreas-00001"
    resources.mkdir(parents=True)
    (resources / "._1-001.dcm").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (series_folder(source) / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (source / "TCIA_pancreas_labels-02-05-2017" / "._label0001.nii.gz").write_bytes(b"\0\5\x16\7")
    folder = write_dataset(pancreas.convert(source, 1), 82)
    np.testing.assert_array_equal(array(folder / "imagesTr" / "pancreas_0001_0000.nii.gz"), ct(1)[0])
    np.testing.assert_array_equal(array(folder / "labelsTr" / "pancreas_0001.nii.gz"), ct(1)[1])
    assert names(folder / "imagesUn") == ["pancreas_0002_0000"]


def test_slices_doubled_and_slices_of_another_size(base, source):
    write_case(source, 1)
    place = next(series_folder(source).rglob("Pancreas-*"))
    write_series(place, ct(5)[0], drop=range(1, 14), prefix="2-")
    convert_bad(source, r"PANCREAS_0001: slices are there twice: (1|2)-\d+.dcm and (1|2)-\d+.dcm. Remove one of each")
    write_series(place, ct(5)[0][:, :10], drop=range(1, 14), prefix="2-")
    convert_bad(source, "the slices have different sizes")


def test_no_dicom_in_the_folder(base, source):
    write_case(source, 1)
    for file in series_folder(source).rglob("*.dcm"):
        file.write_text("nothing")
    convert_bad(source, r"PANCREAS_0001: one DICOM series was expected, 0 found")


def test_a_label_that_was_flipped_already(base, source):
    write_case(source, 1)
    write_label(source, 1, ct(1)[1][:, ::-1])
    convert_bad(source, r"label0001.nii.gz does not fit its scan: \d+% of it lies on soft tissue, but 100%")
    write_label(source, 1, 0 * ct(1)[1])
    convert_bad(source, r"label0001.nii.gz is empty")


def test_what_is_missing_is_named(source):
    with pytest.raises(DatasetError, match=r"expected PANCREAS_0001.* Found: nothing"):
        pancreas.convert(source, 6)
    write_case(source, 2)
    with pytest.raises(DatasetError, match=r"1 of 1 labeled scans are missing: .*PANCREAS_0001"):
        pancreas.convert(source, 1)
    write_case(source, 1)
    found = pancreas.convert(source, 1)
    assert counts(found) == [1, 1, 0, 0]
    assert "PANCREAS_0082" in {file.name for file in found.absent["test scans"]}
    next(source.rglob("label0001*")).unlink()
    with pytest.raises(DatasetError, match=r"1 of 1 labels of labeled scans are missing: .*label0001.nii.gz"):
        pancreas.convert(source, 1)
