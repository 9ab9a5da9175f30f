"""A folder of NIfTI scans as the Medical Segmentation Decathlon lays them out (imagesTr, labelsTr, dataset.json)."""

import random
import sys
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import Case, Conversion, read_image, require, wrong_folder
from nnunetv2_crossmatch.utilities.errors import DatasetError, printable
from nnunetv2_crossmatch.utilities.files import read_json
from nnunetv2_crossmatch.utilities.folders import read_folder

FILE_ENDING = ".nii.gz"
SEED = 0  # of the draw; the same order for any number, so 4 labeled cases are among 10


def convert(source: Path, labeled: int, test: int = 0) -> Conversion:
    """Hold out ``test`` cases, keep the labels of ``labeled`` others, hide the rest.

    Args:
        source: has imagesTr/NAME.nii.gz and labelsTr/NAME.nii.gz, single-channel 3D. Modality and label names
            come from its dataset.json; without one it is MRI with class1, class2, ...

    Raises:
        DatasetError: missing files, several channels, or fewer cases than asked for.
    """
    source = source.resolve()
    if not (source / "imagesTr").is_dir() or not (source / "labelsTr").is_dir():
        raise wrong_folder(source, f"imagesTr and labelsTr with {FILE_ENDING} files")
    found = read_folder(source / "imagesTr", FILE_ENDING)
    images = found.files
    masks = [source / "labelsTr" / f.name for f in images]
    require(masks, "labels of the scans in imagesTr")
    deep = [f"{folder} is a folder and not looked into." for folder in found.folders]
    for line in (*found.left_out, *deep):
        print(printable(line), file=sys.stderr)
    if labeled < 1 or test < 0 or labeled + test >= len(images):
        raise DatasetError(
            [f"{source} has {len(images)} cases; {labeled} labeled and {test} test cases cannot be drawn from them."]
        )
    described = read_json(source / "dataset.json") if (source / "dataset.json").exists() else {}
    channels = list((described.get("modality") or described.get("channel_names") or {"0": "MRI"}).values())
    if len(channels) > 1:
        raise DatasetError([f"{source} has {len(channels)} channels in one file; nnU-Net wants one file each."])
    random.Random(SEED).shuffle(images)
    cases = [_case(image, source / "labelsTr" / image.name) for image in images]
    return Conversion(
        name="".join(c for c in source.name if c.isalnum()),
        channels=(channels[0],),
        labels=_labels(masks, described.get("labels", {})),
        test=cases[:test],
        labeled=cases[test : test + labeled],
        unlabeled=cases[test + labeled :],
    )


def _case(image: Path, label: Path) -> Case:
    return Case(
        id=image.name.removesuffix(FILE_ENDING),
        image=partial(read_image, image),
        label=partial(read_image, label),
        original=image,
    )


def _labels(files: list[Path], described: dict) -> dict[str, int]:
    if described:  # {"0": "background"} in the Decathlon, {"background": 0} in nnU-Net
        return {name: int(value) for value, name in described.items()} if "0" in described else described
    highest = max(round(float(sitk.GetArrayFromImage(read_image(f)).max())) for f in files)
    return {"background": 0, **{f"class{value}": value for value in range(1, highest + 1)}}
