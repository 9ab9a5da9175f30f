"""2018 Atrial Segmentation Challenge in the community's h5 files (``<ID>/mri_norm2.h5``).

Published lists: 80 training scans (train.list), 20 test scans (test.list); the labelled ones are the
first 4, 8 or 16 names of the sorted train.list. The files train_N_unlabel.list are not used:
train_16_unlabel.list names 12 of the 16 labelled scans.
"""

from pathlib import Path

import h5py
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import Case, Conversion, image_from_array, present, require
from nnunetv2_crossmatch.preprocessing.listing import DatasetError

SPACING = (0.625, 0.625, 0.625)  # mm, isotropic; not in the files


def convert(source: Path, labeled: int) -> Conversion:
    """``labeled`` of the 80 training scans keep their labels.

    Args:
        source: the folder of train.list and test.list, with one folder per scan.

    Raises:
        DatasetError: no list, a labelled scan is missing, or nothing would be left unlabelled.
            Missing unlabelled and test scans are named and left out.
    """
    require([source / "train.list"], "list of the training scans")
    train = sorted((source / "train.list").read_text().split())
    if not 0 < labeled < len(train):
        raise DatasetError([f"--labeled {labeled}: train.list has {len(train)} scans."])
    test = [name for file in present([source / "test.list"], "test list") for name in file.read_text().split()]

    def files(ids: list[str]) -> list[Path]:
        return [source / scan / "mri_norm2.h5" for scan in ids]

    require(files(train[:labeled]), "labelled scan")
    return Conversion(
        name="LA",
        channel="MRI",
        labels={"background": 0, "left_atrium": 1},
        labeled=[_case(file) for file in files(train[:labeled])],
        unlabeled=[_case(file) for file in present(files(train[labeled:]), "unlabelled scan")],
        test=[_case(file) for file in present(files(test), "test scan")],
    )


def _case(file: Path) -> Case:
    def load() -> tuple[sitk.Image, sitk.Image]:
        with h5py.File(file) as content:  # axes x, y, z
            return tuple(image_from_array(content[key][()].T, SPACING) for key in ("image", "label"))

    return Case(id=file.parent.name, load=load)
