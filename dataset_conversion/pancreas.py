"""NIH Pancreas-CT: abdominal CT in HU with the pancreas, from TCIA (The Cancer Imaging Archive).

Two forms, told apart by their files:
- TCIA's: ``PANCREAS_NNNN/<study>/<series>/*.dcm`` as its downloader leaves them, and labelNNNN.nii.gz;
- the community's ``Pancreas_h5/imageNNNN_norm.h5`` (MC-Net) or ``NNNN.h5`` (CoraNet, BCP), axes x, y, z: clipped to
  [-125, 275] HU, min-max scaled, resampled to 1 mm, cropped around the ground truth, test scans included.
Where both lie in the folder, TCIA's are taken.

Orientation: the labels' headers do not describe the DICOM grid. Shown by them, a label is flipped in y; the example
in the README of mattiaspaul/deedsBCV flips y for this reason. Their voxels, though, are stored in the order of the
DICOM pixels: x is the column, y the row, z the InstanceNumber. ycwu1997/MC-Net, DeepMed-Lab-ECNU/BCP and
twni2016/OrganSegRSTN_PyTorch all pair them so. The labels are therefore put on the DICOM grid in stored order, and
must then fit: the same size, and not clearly less soft tissue under the label than if it were flipped in y.

82 or 80 cases: TCIA removed #25 and #70 on 2020-09-10, because both are the scan of case #2, cropped slightly
differently; its folder of labels still has 82. In the 82-case lists (MC-Net) #25 is a test case while #2 and #70 train,
so test and training scan are one. Here #25 and #70 are left out, unless ``duplicates`` asks for the published lists as
they are. A source with #25 or #70 gets the 82-case lists (62 training, 20 test; 61 and 19 without the two); one without
gets the 80-case lists of CoraNet and BCP (62 and 18). Labeled: the first 6 or 12 of the training list.
"""

import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import (
    Case,
    Conversion,
    below,
    nifti_file,
    on_grid,
    present,
    read_h5,
    read_image,
    take_labeled,
    wrong_folder,
)
from nnunetv2_crossmatch.dataset_conversion.dicom import read_series
from nnunetv2_crossmatch.utilities.errors import DatasetError

SPACING = (1.0, 1.0, 1.0)  # mm; not in the h5 files
SAME_SCAN = (2, 25, 70)
REMOVED = SAME_SCAN[1:]
# fmt: off
TRAIN_82 = (
    57, 18, 62, 31, 20, 17, 32, 79, 61, 64, 70, 19, 48, 76, 41, 52, 49, 71, 72, 34, 10, 15, 77, 80, 27, 47,
    22, 14, 68, 58, 7, 11, 24, 42, 82, 35, 12, 55, 75, 78, 16, 13, 53, 23, 56, 33, 38, 30, 81, 29, 36, 44, 2,
    45, 26, 65, 66, 43, 28, 63, 69, 3,
)
TEST_82 = (
    50, 59, 37, 60, 40, 74, 4, 46, 8, 54, 5, 73, 1, 39, 6, 67, 25, 51, 21, 9,
)
# fmt: on
TRAIN_80 = tuple(number for number in range(1, 64) if number not in REMOVED)
TEST_80 = tuple(number for number in range(64, 83) if number not in REMOVED)
SOFT_TISSUE = (-100, 240)  # HU, the usual window of the pancreas
MARGIN = 0.1  # by which a flipped label may hold more soft tissue before it is refused


def convert(source: Path, labeled: int, duplicates: bool = False) -> Conversion:
    """``labeled`` of the training scans keep their labels.

    Args:
        source: a folder with the DICOM folders and the labels, or with the h5 files, anywhere below.
        duplicates: keep #25 and #70.

    Raises:
        DatasetError: neither form, a labeled scan or its label is missing, or nothing would be left unlabeled; while
            writing, a bad DICOM series or a label that does not fit. Missing others are named and left out.
    """
    # some downloads have an empty folder for #25 and #70
    dicom = _numbered(
        (f for f in below(source, "PANCREAS_*") if any(file.is_file() for file in below(f, "*"))), r"PANCREAS_(\d{4})"
    )
    h5 = _numbered(below(source, "*.h5"), r"(?:image)?(\d{4})(?:_norm)?\.h5")
    labels = _numbered(below(source, "label*.nii*"), r"label(\d{4})\.nii(?:\.gz)?")
    scans = dicom or h5
    if not scans:
        raise wrong_folder(source, "PANCREAS_0001/.../*.dcm and label0001.nii.gz, or Pancreas_h5/image0001_norm.h5")
    number_of = {scan: number for number, scan in scans.items()}
    train, test = (TRAIN_82, TEST_82) if set(REMOVED) & set(scans) else (TRAIN_80, TEST_80)
    if not duplicates and (doubled := sorted(set(REMOVED) & set(scans))):
        print(f"left out: {', '.join(f'#{n}' for n in doubled)}, the same scan as #2", file=sys.stderr)
        train, test = (tuple(number for number in part if number not in REMOVED) for part in (train, test))

    def files(numbers: Iterable[int]) -> list[Path]:
        name = "PANCREAS_{:04d}" if dicom else "image{:04d}_norm.h5"
        return [scans.get(number, source / name.format(number)) for number in numbers]

    def case(scan: Path) -> Case:
        number = number_of[scan]
        patient = f"pancreas_{SAME_SCAN[0] if number in SAME_SCAN else number:04d}"
        if dicom:
            image = partial(_image, scan)
            label = partial(_label, labels[number], scan) if number in labels else None
        else:
            image, label = (partial(read_h5, scan, key, "xyz", SPACING) for key in ("image", "label"))
        return Case(id=f"pancreas_{number:04d}", image=image, label=label, patient=patient)

    needed = {"labeled scans": lambda number: files([number])}
    if dicom:
        needed["labels of labeled scans"] = lambda number: [
            labels.get(number, nifti_file(source, f"label{number:04d}"))
        ]
    labeled_numbers, unlabeled_numbers = take_labeled(train, labeled, needed)
    absent: dict[str, list[Path]] = {}
    return Conversion(
        name="PancreasCT",
        channels=("CT",),
        labels={"background": 0, "pancreas": 1},
        labeled=[case(scan) for scan in files(labeled_numbers)],
        unlabeled=[case(scan) for scan in present(files(unlabeled_numbers), "unlabeled scans", absent)],
        test=[case(scan) for scan in present(files(test), "test scans", absent)],
        absent=absent,
    )


def _numbered(paths: Iterable[Path], pattern: str) -> dict[int, Path]:
    return {int(match[1]): path for path in paths if (match := re.fullmatch(pattern, path.name))}


def _image(folder: Path) -> sitk.Image:
    return read_series(folder).image


def _label(file: Path, folder: Path) -> sitk.Image:
    """The label on the grid of its series; see the module's docstring."""
    series = read_series(folder)
    label = read_image(file)
    if not series.ascending:
        label = sitk.Flip(label, (False, False, True))
    label.SetDirection(series.image.GetDirection())  # in stored order, whatever the header says
    label = on_grid(label, series.image, file.name)
    _check_fit(sitk.GetArrayViewFromImage(series.image), sitk.GetArrayViewFromImage(label) > 0, file)
    return label


def _check_fit(image: np.ndarray, mask: np.ndarray, file: Path) -> None:
    if not mask.any():
        raise DatasetError([f"{file} is empty; every scan of Pancreas-CT shows a pancreas."])
    soft = (image >= SOFT_TISSUE[0]) & (image <= SOFT_TISSUE[1])
    stored, flipped = (soft[placed].mean() for placed in (mask, mask[:, ::-1]))
    if flipped > stored + MARGIN:
        raise DatasetError(
            [
                f"{file} does not fit its scan: {stored:.0%} of it lies on soft tissue, but {flipped:.0%} would if it "
                "were flipped in y. Was it flipped already? TCIA's own file is expected."
            ]
        )
