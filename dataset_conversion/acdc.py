"""ACDC: cine MR of the heart, one end-diastolic (ED) and one end-systolic (ES) volume of each patient.

Two forms, told apart by their files:
- the challenge's database: ``training/patientNNN/`` and ``testing/patientNNN/`` with Info.cfg, which names the
  frames (``ED: 1``, ``ES: 12``), patientNNN_frameMM.nii.gz and patientNNN_frameMM_gt.nii.gz. Other frames and
  patientNNN_4d.nii.gz are not used. ED is not always frame 1.
- the community's ``data/patientNNN_frame01.h5`` and ``_frame02.h5``, axes z, y, x, without spacing. There 01 is ED
  and 02 is ES whatever the frames' numbers were: the left ventricle is the larger one in frame01 of all 80 patients
  tried.
Where both lie in the folder, the challenge's are taken.

Published lists (SSL4MIS, HiLab-git/SSL4MIS, data/ACDC): the challenge's 100 training patients in 70 for training, 10
for validation and 20 for testing; 1, 3 or 7 are labeled. The challenge's 50 testing patients (101 to 150), if there,
become a further test set, imagesTs_official. Nothing published was measured on it with these labels.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion import CONVERTERS
from nnunetv2_crossmatch.dataset_conversion.common import (
    Case,
    Conversion,
    below,
    nifti_file,
    present,
    read_h5,
    read_image,
    take_labeled,
    wrong_folder,
)
from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import read_text

SPACING = (1.5, 1.5, 10.0)  # mm, x y z, nominal; not in the h5 files
LABELED = (99, 38, 50, 21, 49, 58, 100)
PUBLISHED = CONVERTERS["acdc"].published
VALIDATION = (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)
TEST = (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93)
TRAIN = tuple(number for number in range(1, 101) if number not in (*VALIDATION, *TEST))
OFFICIAL = tuple(range(101, 151))


def convert(source: Path, labeled: int) -> Conversion:
    """The first ``labeled`` (1, 3 or 7) of the published labeled patients keep their labels.

    Args:
        source: the database, or the folder of ``data``, or one above either.

    Raises:
        DatasetError: neither form, another number of patients, a labeled volume is missing, an Info.cfg without
            ED and ES. Missing unlabeled, validation and test volumes are named and left out.
    """
    if labeled not in PUBLISHED:
        raise DatasetError([f"--labeled {labeled}: ACDC's published lists have {PUBLISHED} labeled patients."])
    infos = {info.parent.name: info for info in below(source, "Info.cfg")}
    volumes = {volume.stem: volume for volume in below(source, "patient*_frame0[12].h5")}
    if not infos and not volumes:
        raise wrong_folder(
            source, "training/patientNNN/Info.cfg (the challenge's database) or data/patientNNN_frame01.h5"
        )

    def files(*numbers: int) -> list[Path]:
        if infos:
            return [file for n in numbers for file in _frames(infos, source / "training", f"patient{n:03d}")]
        names = [f"patient{n:03d}_frame{frame}" for n in numbers for frame in ("01", "02")]
        return [volumes.get(name, source / "data" / f"{name}.h5") for name in names]

    case = _original if infos else _community
    needed: dict[str, Callable[[int], list[Path]]] = {"labeled volumes": files}
    if infos:
        needed["labels of labeled volumes"] = lambda n: [_label_file(file) for file in files(n) if file.exists()]
    chosen, others = take_labeled((*LABELED, *(n for n in TRAIN if n not in LABELED)), labeled, needed, PUBLISHED)
    official = [n for n in OFFICIAL if f"patient{n}" in infos]
    absent: dict[str, list[Path]] = {}
    return Conversion(
        name="ACDC",
        channels=("MRI",),
        labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
        labeled=[case(file) for file in files(*chosen)],
        unlabeled=[case(file) for file in present(files(*sorted(others)), "unlabeled volumes", absent)],
        validation=[case(file) for file in present(files(*VALIDATION), "validation volumes", absent)],
        test=[case(file) for file in present(files(*TEST), "test volumes", absent)],
        official=[case(file) for file in present(files(*official), "official test volumes", absent)],
        absent=absent,
    )


def _frames(infos: dict[str, Path], folder: Path, patient: str) -> list[Path]:
    """The ED and the ES volume; Info.cfg itself where it is missing."""
    if (info := infos.get(patient)) is None:
        return [folder / patient / "Info.cfg"]
    text = read_text(info)
    frames = [re.search(rf"^{phase}:\s*(\d+)\s*$", text, re.MULTILINE) for phase in ("ED", "ES")]
    if not all(frames):
        raise DatasetError([f"{info} does not say which frames are ED and ES (lines 'ED: 1' and 'ES: 12')."])
    return [nifti_file(info.parent, f"{patient}_frame{int(frame[1]):02d}") for frame in frames if frame]


def _label_file(file: Path) -> Path:
    return nifti_file(file.parent, f"{file.name.split('.')[0]}_gt")


def _original(file: Path) -> Case:
    label = _label_file(file)
    return Case(
        id=file.name.split(".")[0],
        image=partial(read_image, file),
        label=partial(read_image, label) if label.exists() else None,
        patient=file.parent.name,
        original=file,
    )


def _community(file: Path) -> Case:
    image, label = (partial(read_h5, file, key, "zyx", SPACING) for key in ("image", "label"))
    return Case(id=file.stem, image=image, label=label, patient=file.name.split("_")[0])
