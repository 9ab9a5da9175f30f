"""ISIC-2018 task 1: dermoscopic RGB photographs of skin lesions, 2594 JPEG images of many sizes with PNG masks.

Two forms, told apart by nothing but their folders: the challenge's (ISIC2018_Task1-2_Training_Input/ISIC_XXXXXXX.jpg,
ISIC2018_Task1_Training_GroundTruth/ISIC_XXXXXXX_segmentation.png) and the community's, squashed to one size
(images/, masks/, with or without ``_segmentation``). Masks hold 0 and 255.

Published lists (CRKD, eeaesa/CRKD, splits/ISIC2018): 2075 images for training, 519 for testing (the repository's
val.txt, on which the published results were measured); 103, 207 or 415 labeled, three draws that are not nested.
Another number is drawn here from the training images in ``source`` that have a mask, with seed 0 after sorting by name.
"""

import random
import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import SimpleITK as sitk
from skimage import io

from nnunetv2_crossmatch.dataset_conversion import CONVERTERS
from nnunetv2_crossmatch.dataset_conversion.common import (
    Case,
    Conversion,
    below,
    listed,
    missing_error,
    present,
    read_image,
    take_labeled,
    wrong_folder,
)
from nnunetv2_crossmatch.utilities.errors import DatasetError

IMAGES = 2594
PUBLISHED = CONVERTERS["isic"].published
SEED = 0
MASK_NAME = re.compile(r"(ISIC_\d{7})(?:_segmentation)?\.png")


def convert(source: Path, labeled: int) -> Conversion:
    """``labeled`` of the training images keep their masks.

    Args:
        source: a folder with the images and the masks anywhere below, and none of the challenge's own validation
            and test images, which these lists do not know.

    Raises:
        DatasetError: no such images, more than 2594, a labeled image or its mask is missing, or nothing would be
            left unlabeled. Missing test images are named and left out.
    """
    images = {file.stem: file for file in below(source, "ISIC_*.jpg")}
    masks = {
        match[1]: file for file in below(source, "ISIC_*.png") if (match := MASK_NAME.fullmatch(file.name)) is not None
    }
    expected = "ISIC_XXXXXXX.jpg images and ISIC_XXXXXXX_segmentation.png masks of the 2594 training images"
    if not images or not masks:
        raise wrong_folder(source, expected)
    if len(images) > IMAGES:
        raise DatasetError(
            [f"{source} has {len(images)} images. Expected: {expected}, without validation or test images."]
        )

    if len(images) < IMAGES:
        print(f"{IMAGES - len(images)} of the {IMAGES} images are not here and left out.", file=sys.stderr)

    def files(ids: Iterable[str]) -> list[Path]:
        return [images.get(name, source / f"{name}.jpg") for name in ids]

    test = listed("isic_test")
    train = sorted(set(images) - set(test))
    annotated = [name for name in train if name in masks]
    needed = {
        "labeled images": lambda name: files([name]),
        "masks of labeled images": lambda name: [masks.get(name, source / f"{name}_segmentation.png")],
    }
    if labeled in PUBLISHED:
        chosen = listed(f"isic_labeled_{labeled}")
        wanted = {what: [file for name in chosen for file in of(name)] for what, of in needed.items()}
        if not all(file.exists() for of_kind in wanted.values() for file in of_kind):
            raise missing_error(
                wanted,
                f"Other numbers than {', '.join(map(str, PUBLISHED))} are drawn from the images that are here with "
                f"their masks: at most --labeled {min(len(annotated), len(train) - 1)}.",
            )
    else:
        order = random.Random(SEED).sample(annotated, len(annotated))
        chosen = list(take_labeled([*order, *sorted(set(train) - set(order))], labeled, needed)[0])
    absent: dict[str, list[Path]] = {}
    return Conversion(
        name="ISIC2018",
        channels=("R", "G", "B"),
        labels={"background": 0, "lesion": 1},
        stored={0: 0, 255: 1},
        file_ending=".png",
        labeled=[_case(file, masks) for file in files(chosen)],
        unlabeled=[_case(images[name], masks) for name in sorted(set(train) - set(chosen))],
        test=[_case(file, masks) for file in present(files(test), "test images", absent)],
        absent=absent,
    )


def _case(file: Path, masks: dict[str, Path]) -> Case:
    mask = masks.get(file.stem)
    return Case(
        id=file.stem,
        image=partial(_read_rgb, file),
        label=partial(read_image, mask) if mask else None,
        original=file,
    )


def _read_rgb(file: Path) -> sitk.Image:
    """Decoded as nnU-Net's reader decodes the unlabeled originals, so that both have the same colors."""
    array = io.imread(file)
    if array.ndim != 3 or array.shape[2] != 3:
        raise DatasetError([f"{file} is not an RGB image (array of shape {array.shape})."])
    return sitk.GetImageFromArray(array, isVector=True)
