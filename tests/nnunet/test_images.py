import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_crossmatch.nnunet.images import (
    differences,
    files_beside,
    find_reader,
    has_no_geometry,
    is_flat,
    nearest_integers,
    read_images,
    read_spacing,
)

ARRAY = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("tiff", "there", "expected"),
    [
        ("case_0001.tif", ["case.json"], "case.json"),  # nnU-Net's rule
        ("embryo_17.tif", ["embryo_17.json", "embr.json"], "embryo_17.json"),  # nnU-Net would take embr.json
        ("embryo_17.tif", ["embr.json"], None),
        ("case_0001.tiff", ["case_0001.json"], "case_0001.json"),
        ("case_0001.tif", ["case.json", "case_0001.json"], "case.json"),
        ("scan.nii.gz", ["scan.json"], None),
    ],
)
def test_the_spacing_file_of_a_tiff(tmp_path, capsys, tiff, there, expected):
    spacings = {name: [0.5 + i, 0.25, 0.25] for i, name in enumerate(there)}
    for name, spacing in spacings.items():
        (tmp_path / name).write_text(json.dumps({"spacing": spacing}))
    file = tmp_path / tiff
    assert [beside.name for beside in files_beside(file)] == ([expected] if expected else [])
    if "tif" in tiff:
        tifffile.imwrite(file, ARRAY)
        data, properties = read_images([file], Tiff3DIO())
        np.testing.assert_array_equal(data, ARRAY[None])
        assert list(properties["spacing"]) == (spacings[expected] if expected else [1, 1, 1])
        assert list(read_spacing([file], Tiff3DIO())) == list(properties["spacing"])
        if expected:
            assert "no spacing file" not in capsys.readouterr().out


def test_a_spacing_file_that_is_none(tmp_path):
    tifffile.imwrite(tmp_path / "scan.tif", ARRAY)
    for content in ("[]", '{"spacing": [1, 2]}', '{"spacing": ["a", 1, 1]}', '{"spacing": 1}'):
        (tmp_path / "scan.json").write_text(content)
        with pytest.raises(ValueError, match="scan.json is not of the form"):
            read_images([tmp_path / "scan.tif"], Tiff3DIO())
    (tmp_path / "scan.json").write_text('{"spacing": [1, 1, 1}')
    with pytest.raises(ValueError, match="scan.json is not valid JSON: line 1, column 21"):
        read_images([tmp_path / "scan.tif"], Tiff3DIO())
    (tmp_path / "scan.json").write_text('{"spacing": [3, 2, 1]}', encoding="utf-16")
    assert read_images([tmp_path / "scan.tif"], Tiff3DIO())[1]["spacing"] == [3, 2, 1]


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_headers_that_differ_are_told_from_headers_that_are_rounded(tmp_path, reader):
    def properties(affine: np.ndarray) -> dict:
        nibabel.save(nibabel.Nifti1Image(ARRAY.T, affine), tmp_path / "image.nii.gz")
        return reader().read_seg(str(tmp_path / "image.nii.gz"))[1]

    affine = np.diag([0.7, 0.8, 2.5, 1])
    affine[:3, 3] = -120, 80, 33
    usual = properties(affine)

    def changed(value: float, *place: int) -> list[str]:
        other = affine.copy()
        other[place] = value
        return differences(properties(other), usual)

    assert differences(usual, usual) == []
    assert changed(2.500002, 2, 2) == [] and changed(2.5001, 2, 2) == ["spacing"]
    assert changed(-120.05, 0, 3) == [] and changed(-120.1, 0, 3) == ["origin"]
    if reader is not NibabelIOWithReorient:  # which turns every image the same way
        assert differences(properties(affine @ np.diag([1, -1, 1, 1])), usual) == ["orientation"]
        assert has_no_geometry(properties(np.diag([-1, -1, 1, 1])))
    assert has_no_geometry(properties(np.eye(4)))
    assert not has_no_geometry(usual)
    placed = np.eye(4)
    placed[0, 3] = 5
    assert not has_no_geometry(properties(placed))


def test_a_2d_image_is_flat_and_a_thick_slice_is_not(tmp_path):
    image = sitk.GetImageFromArray(ARRAY[0])
    image.SetSpacing((0.5, 0.7))
    sitk.WriteImage(image, str(tmp_path / "flat.nii.gz"))
    data, properties = SimpleITKIO().read_images([str(tmp_path / "flat.nii.gz")])
    assert is_flat(data.shape[1:], properties["spacing"])
    assert list(read_spacing([tmp_path / "flat.nii.gz"], SimpleITKIO())) == list(properties["spacing"])
    assert not is_flat((1, 4, 4), (10, 0.5, 0.7)) and not is_flat((2, 4, 4), (699.3, 0.5, 0.7))


def test_nearest_integers():
    values = np.array([0, 0.99999994, 1.0009, 1.002, 1.5, -1], np.float32)
    np.testing.assert_array_equal(nearest_integers(values), np.array([0, 1, 1, 1.002, 1.5, -1], np.float32))
    assert nearest_integers(np.array([300], np.int16)).dtype == np.int16


def test_the_reader_is_nnunets_and_says_nothing(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((5, 6, 7), np.float32))
    assert find_reader({"file_ending": ".tif"}, [tmp_path / "scan.tif"]) is Tiff3DIO
    assert find_reader({"file_ending": ".nii.gz"}, [tmp_path / "broken.nii.gz"]) is SimpleITKIO
    with pytest.raises(RuntimeError, match="no reader for .xyz"):
        find_reader({"file_ending": ".xyz"}, [])
    assert capsys.readouterr() == ("", "")
