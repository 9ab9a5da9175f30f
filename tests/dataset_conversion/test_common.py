from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import Case, Conversion, below, on_grid, read_image, write_dataset
from nnunetv2_crossmatch.utilities.errors import DatasetError
from tests.dataset_conversion.conftest import array, names, scan, write


def conversion(source, label=None, spoil=lambda file: None, **options) -> Conversion:
    """Two labeled and one unlabeled case; the unlabeled one is used in place and has the given label."""
    cases = []
    for number in range(3):
        image, mask = scan(number)
        write(image, source / f"image{number}.nii.gz", (1.0, 1.5, 2.0))
        write(mask if number < 2 or label is None else label, source / f"label{number}.nii.gz", (1.0, 1.5, 2.0))
        if number == 2:
            spoil(source / "image2.nii.gz")
        read = [partial(read_image, source / f"{what}{number}.nii.gz") for what in ("image", "label")]
        cases.append(Case(f"case{number}", *read, original=source / f"image{number}.nii.gz"))
    described = {"channels": ("MRI",), "labels": {"background": 0, "shell": 1, "core": 2}, **options}
    return Conversion(name="X", labeled=cases[:2], unlabeled=cases[2:], **described)


def test_an_unlabeled_image_that_is_used_in_place_is_not_read(base, source):
    def spoil(file):
        file.write_bytes(file.read_bytes()[:2000])  # the header survives

    folder = write_dataset(conversion(source, spoil=spoil), 1)
    np.testing.assert_array_equal(array(folder / "labelsUn" / "case2.nii.gz"), scan(2)[1])


def test_what_is_hidden_or_of_a_mac_is_not_below(source):
    for name in ("a/scan1", "a/._scan1", "a/.DS_Store", "__MACOSX/a/scan1", ".git/scan1", "b/scan2"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    assert [str(file.relative_to(source)) for file in below(source, "*")] == ["a", "a/scan1", "b", "b/scan2"]


def test_a_label_of_another_size(base, source):
    with pytest.raises(DatasetError, match=r"case2: the image has \(24, 24, 16\) voxels .* its label \(24, 24, 15\)"):
        write_dataset(conversion(source, label=scan(2)[1][1:]), 1)
    assert not list((base / "raw").glob("Dataset*"))


@pytest.mark.parametrize(("value", "dtype"), [(7, np.uint8), (300, np.int16), (-1, np.int16), (0.5, np.float32)])
def test_values_outside_the_map(base, source, value, dtype):
    label = scan(2)[1].astype(dtype)
    label[0, 0, 0] = value
    with pytest.raises(DatasetError, match=rf"case2: the label has the values {value}; only \[0, 1, 2\] are expected"):
        write_dataset(conversion(source, label=label), 1)


def test_float_labels_and_stored_values(base, source):
    label = 100 * scan(2)[1].astype(np.float32)
    folder = write_dataset(conversion(source, label=label, stored={0: 0, 1: 1, 2: 2, 100: 1, 200: 2}), 1)
    np.testing.assert_array_equal(array(folder / "labelsUn" / "case2.nii.gz"), scan(2)[1])


def test_labels_that_are_nearly_integers_are_rounded_and_others_shown_in_full(base, source):
    nearly = scan(2)[1] * np.float32(0.9996)
    folder = write_dataset(conversion(source, label=nearly), 1)
    np.testing.assert_array_equal(array(folder / "labelsUn" / "case2.nii.gz"), scan(2)[1])
    with pytest.raises(DatasetError, match=r"case2: the label has the values 0.99800\d+, 1.99600\d+; only"):
        write_dataset(conversion(source, label=scan(2)[1] * np.float32(0.998)), 2)


def test_an_unreadable_image(base, source):
    with pytest.raises(DatasetError, match="case2: the image cannot be read"):
        write_dataset(conversion(source, spoil=lambda file: file.write_text("no image")), 1)


def test_the_folder_of_a_killed_run_is_replaced_and_others_are_not(base, source):
    killed = base / "raw" / "Dataset001_X"
    killed.mkdir()
    (killed / ".unfinished").touch()
    (killed / "leftover").touch()
    (base / "raw" / "Dataset001_OfAnotherBenchmark").mkdir()
    (base / "raw" / "Dataset001_OfAnotherBenchmark" / ".unfinished").touch()
    assert names(write_dataset(conversion(source), 1)) == ["dataset", "imagesTr", "labelsTr", "labelsUn", "unlabeled"]
    assert [folder.name for folder in (base / "raw").glob("Dataset*")] == ["Dataset001_X"]
    (base / "raw" / "Dataset002_mine").mkdir()
    with pytest.raises(FileExistsError, match=r"Dataset id 2 is taken by \S+/raw/Dataset002_mine\. Remove"):
        write_dataset(conversion(source), 2)


def grid_and_label() -> tuple[sitk.Image, sitk.Image]:
    image, label = map(sitk.GetImageFromArray, scan(0))
    for part in (image, label):
        part.SetSpacing((1.0, 1.5, 2.0))
        part.SetOrigin((-10.0, 20.0, 5.0))
    return image, label


def test_a_color_image_is_no_mask(base, source):
    colors = sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True)
    with pytest.raises(DatasetError, match="mask.png: the label has 3 channels"):
        on_grid(colors, colors, "mask.png")


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PIR", "SLP"])
def test_a_label_with_the_same_grid_in_another_order_of_axes(orientation):
    image, label = grid_and_label()
    placed = on_grid(sitk.DICOMOrient(label, orientation), image, "case")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed), scan(0)[1])
    assert placed.GetDirection() == image.GetDirection() and placed.GetOrigin() == pytest.approx(image.GetOrigin())


def test_a_label_whose_header_lies_is_taken_in_stored_order():
    image, label = grid_and_label()
    label.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    label.SetOrigin((0, 0, 0))
    placed = on_grid(label, image, "case")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(placed), scan(0)[1])
    assert placed.GetDirection() == image.GetDirection() and placed.GetOrigin() == image.GetOrigin()


def test_files_are_found_through_links(source, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "a.h5").touch()
    (source / "b.h5").touch()
    (source / "data").symlink_to(tmp_path / "elsewhere")
    assert below(source, "*.h5") == [source / "b.h5", source / "data" / "deep" / "a.h5"]
