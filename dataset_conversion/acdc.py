"""ACDC in the community's h5 volumes (``data/patientNNN_frameMM.h5``), one end-diastolic and one end-systolic each.

Published lists: 70 training, 10 validation and 20 test patients (train.list, val.list, test.list name
volumes); 1, 3 or 7 training patients are labelled. The source's splits/N/labeled.txt name their slices.
"""

from pathlib import Path

import h5py
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import Case, Conversion, image_from_array, present, require
from nnunetv2_crossmatch.preprocessing.listing import DatasetError

SPACING = (10.0, 1.5, 1.5)  # mm, z y x, nominal; not in the files
LABELED = ("patient099", "patient038", "patient050", "patient021", "patient049", "patient058", "patient100")
PUBLISHED = (1, 3, 7)


def convert(source: Path, labeled: int) -> Conversion:
    """The first ``labeled`` (1, 3 or 7) of the published labelled patients keep their labels.

    Args:
        source: the folder of the lists, with the volumes in ``data``.

    Raises:
        DatasetError: no list, a labelled volume is missing, or another number of patients. Missing
            unlabelled, validation and test volumes are named and left out.
    """
    if labeled not in PUBLISHED:
        raise DatasetError([f"--labeled {labeled}: ACDC's published lists have {PUBLISHED} labelled patients."])
    require([source / "train.list"], "list of the training volumes")
    parts = {part: _volumes(source, part) for part in ("train", "val", "test")}
    absent = set(LABELED[:labeled]) - {_patient(f) for f in parts["train"]}
    if absent:
        raise DatasetError([f"{source / 'train.list'} does not name the labelled {', '.join(sorted(absent))}."])
    labeled_files = [f for f in parts["train"] if _patient(f) in LABELED[:labeled]]
    require(labeled_files, "labelled volume")
    unlabeled_files = [f for f in parts["train"] if f not in labeled_files]
    return Conversion(
        name="ACDC",
        channel="MRI",
        labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
        labeled=[_case(file) for file in labeled_files],
        unlabeled=[_case(file) for file in present(unlabeled_files, "unlabelled volume")],
        validation=[_case(file) for file in present(parts["val"], "validation volume")],
        test=[_case(file) for file in present(parts["test"], "test volume")],
    )


def _volumes(source: Path, part: str) -> list[Path]:
    lists = present([source / f"{part}.list"], f"{part} list")
    return [source / "data" / f"{name}.h5" for file in lists for name in sorted(file.read_text().split())]


def _patient(file: Path) -> str:
    return file.name.split("_")[0]


def _case(file: Path) -> Case:
    def load() -> tuple[sitk.Image, sitk.Image]:
        with h5py.File(file) as content:  # axes z, y, x
            return tuple(image_from_array(content[key][()], SPACING) for key in ("image", "label"))

    return Case(id=file.stem, load=load, patient=_patient(file))
