"""What is odd and legal must not be refused."""

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.preprocessing import scan_file
from nnunetv2_crossmatch.preprocessing.scan_file import check_file
from tests.preprocessing.bad_scans import IMAGE, nifti, spoiled


def electron_microscopy(file):
    image = sitk.GetImageFromArray(IMAGE)
    image.SetSpacing((8e-6, 8e-6, 3e-5))
    sitk.WriteImage(image, str(file))


def slow_series(file):
    image = sitk.GetImageFromArray(np.stack([IMAGE, IMAGE]), isVector=False)
    image.SetSpacing((1.0, 1.0, 1.0, 1e12))
    sitk.WriteImage(image, str(file))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("em.nii.gz", electron_microscopy),
        ("em.mha", electron_microscopy),
        ("series.mha", slow_series),
        ("mask.tif", lambda file: tifffile.imwrite(file, IMAGE > 0)),
        ("slice.nii.gz", nifti(IMAGE[:1], pixdim=(1, 1, 1, 0))),
        ("padded.nii.gz", spoiled(nifti(), lambda scan: scan + b"\0" * 100)),
    ],
)
def test_is_taken(tmp_path, name, make):
    make(tmp_path / name)
    check_file(tmp_path / name, SimpleITKIO())


def test_a_small_scan_may_be_compressed_as_well_as_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_file, "_MOST_PER_BYTE", 0)
    nifti()(tmp_path / "scan.nii.gz")
    check_file(tmp_path / "scan.nii.gz", SimpleITKIO())
