"""2018 Atrial Segmentation Challenge: gadolinium-enhanced MR of the left atrium, 0.625 mm isotropic.

Two forms, told apart by their files:
- the challenge's folders: ``<ID>/lgemri.nrrd`` and ``<ID>/laendo.nrrd`` (0 and 255), whole scans;
- the community's ``<ID>/mri_norm2.h5``, axes x, y, z, without spacing. Their makers cropped every scan, test
  scans included, around the ground truth (UA-MT, yulequan/UA-MT, code/dataloaders/la_heart_processing.py).
Where both lie in the folder, the challenge's are taken.

Published lists: 80 training and 20 test scans of the challenge's 100 training scans; the labeled ones are the
first 4, 8 or 16 names of the sorted training list. The community's train_16_unlabel.list names 12 of the 16
labeled scans and is not used. Other scans (the challenge's own test set) are not listed and not converted.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion.common import (
    Case,
    Conversion,
    below,
    listed,
    present,
    read_h5,
    read_image,
    take_labeled,
    wrong_folder,
)

SPACING = (0.625, 0.625, 0.625)  # mm; not in the h5 files


def convert(source: Path, labeled: int) -> Conversion:
    """``labeled`` of the 80 training scans keep their labels.

    Args:
        source: the folder of the scans' folders, or one above it.

    Raises:
        DatasetError: neither form, a labeled scan is missing, or nothing would be left unlabeled.
            Missing unlabeled and test scans are named and left out.
    """
    names = ("lgemri.nrrd", "mri_norm2.h5")
    found = {name: {file.parent.name: file for file in below(source, name)} for name in names}
    name = next((name for name in names if found[name]), None)
    if name is None:
        raise wrong_folder(source, f"folders <ID> with {' or '.join(names)}, e.g. {listed('la_train')[0]}/{names[0]}")

    def files(ids: Sequence[str]) -> list[Path]:
        return [found[name].get(scan, source / scan / name) for scan in ids]

    needed = {"labeled scans": lambda scan: files([scan])}
    if name == "lgemri.nrrd":
        needed["labels of labeled scans"] = lambda scan: [
            file.with_name("laendo.nrrd") for file in files([scan]) if file.exists()
        ]
    labeled_ids, unlabeled_ids = take_labeled(listed("la_train"), labeled, needed)
    case = _original if name == "lgemri.nrrd" else _community
    absent: dict[str, list[Path]] = {}
    return Conversion(
        name="LA",
        channels=("MRI",),
        labels={"background": 0, "left_atrium": 1},
        stored={0: 0, 255: 1} if name == "lgemri.nrrd" else None,
        labeled=[case(file) for file in files(labeled_ids)],
        unlabeled=[case(file) for file in present(files(unlabeled_ids), "unlabeled scans", absent)],
        test=[case(file) for file in present(files(listed("la_test")), "test scans", absent)],
        absent=absent,
    )


def _original(file: Path) -> Case:
    label = file.with_name("laendo.nrrd")
    return Case(
        id=file.parent.name,
        image=partial(read_image, file),
        label=partial(read_image, label) if label.exists() else None,
        original=file,
    )


def _community(file: Path) -> Case:
    image, label = (partial(read_h5, file, key, "xyz", SPACING) for key in ("image", "label"))
    return Case(id=file.parent.name, image=image, label=label)
