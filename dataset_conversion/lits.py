"""LiTS: the 131 training CT volumes of the Liver Tumor Segmentation challenge, in HU, with liver and tumor.

Files ``volume-N.nii`` and ``segmentation-N.nii``, N from 0 to 130, zipped (.nii.gz) or not, in any sub-folders. The
protocol of ACTION (arXiv 2206.02307): volumes 0 to 99 for training, 100 to 130 for testing; 1, 5 or 10 labeled
(1, 5 or 10 %). Its first five labeled volumes are known by number: 3, 1, 38, 37, 98. Those that make ten could not be
found in anything public; here the lowest numbers not among the five follow (0, 2, 4, 5, 6, ...), so that every smaller
set is part of the larger ones. A published row for ten labels therefore was measured with other volumes.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunetv2_crossmatch.dataset_conversion.common import (
    NIFTI_ENDINGS,
    Case,
    Conversion,
    below,
    present,
    read_image,
    take_labeled,
    wrong_folder,
)

KNOWN = (3, 1, 38, 37, 98)
TRAIN = (*KNOWN, *(number for number in range(100) if number not in KNOWN))  # labeled first
TEST = tuple(range(100, 131))


def convert(source: Path, labeled: int) -> Conversion:
    """``labeled`` of the 100 training volumes keep their labels.

    Args:
        source: a folder with the volumes and segmentations anywhere below.

    Raises:
        DatasetError: no such files, a labeled volume or its segmentation is missing, or nothing would be left
            unlabeled. Missing unlabeled and test volumes are named and left out.
    """
    found = {
        file.name.split(".")[0]: file
        for ending in reversed(NIFTI_ENDINGS)
        for kind in ("volume", "segmentation")
        for file in below(source, f"{kind}-*{ending}")
    }
    if not any(name.startswith("volume-") for name in found):
        raise wrong_folder(source, "volume-0.nii to volume-130.nii and segmentation-0.nii to segmentation-130.nii")

    def files(kind: str, numbers: Sequence[int]) -> list[Path]:
        return [found.get(f"{kind}-{number}", source / f"{kind}-{number}.nii") for number in numbers]

    def case(volume: Path) -> Case:
        number = int(volume.name.split(".")[0].split("-")[1])
        segmentation = found.get(f"segmentation-{number}")
        return Case(
            id=f"volume_{number:03d}",
            image=partial(read_image, volume),
            label=partial(read_image, segmentation) if segmentation else None,
            original=volume,
        )

    needed = {
        "labeled volumes": lambda number: files("volume", [number]),
        "segmentations of labeled volumes": lambda number: files("segmentation", [number]),
    }
    labeled_numbers, unlabeled_numbers = take_labeled(TRAIN, labeled, needed)
    absent: dict[str, list[Path]] = {}
    return Conversion(
        name="LiTS",
        channels=("CT",),
        labels={"background": 0, "liver": 1, "tumor": 2},
        labeled=[case(file) for file in files("volume", labeled_numbers)],
        unlabeled=[case(file) for file in present(files("volume", unlabeled_numbers), "unlabeled volumes", absent)],
        test=[case(file) for file in present(files("volume", TEST), "test volumes", absent)],
        absent=absent,
    )
