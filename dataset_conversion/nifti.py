"""A folder of NIfTI scans as the Medical Segmentation Decathlon lays them out (imagesTr, labelsTr)."""

import random
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import FILE_ENDING, Case, Conversion, require
from nnunetv2_crossmatch.preprocessing.listing import UnlabeledDataError

SEED = 0  # of the draw; the same order for any number, so 4 labelled cases are among 10


def convert(source: Path, labeled: int, test: int = 0) -> Conversion:
    """Hold out ``test`` cases, keep the labels of ``labeled`` others, hide the rest.

    Args:
        source: has imagesTr/NAME.nii.gz and labelsTr/NAME.nii.gz, single-channel 3D.

    Raises:
        UnlabeledDataError: missing files, or fewer cases than asked for.
    """
    require([source / "imagesTr", source / "labelsTr"], "NIfTI scans and their labels")
    images = sorted(f for f in (source / "imagesTr").glob("*" + FILE_ENDING) if not f.name.startswith("."))
    require([source / "labelsTr" / f.name for f in images], "label of a scan in imagesTr")
    if labeled + test >= len(images):
        raise UnlabeledDataError(
            [f"{source} has {len(images)} cases; {labeled} labelled and {test} test cases leave none unlabelled."]
        )
    random.Random(SEED).shuffle(images)
    cases = [_case(image, source / "labelsTr" / image.name) for image in images]
    return Conversion(
        name="".join(c for c in source.name if c.isalnum()),
        channel="MRI",
        labels=_labels(source / "labelsTr"),
        test=cases[:test],
        labeled=cases[test : test + labeled],
        unlabeled=cases[test + labeled :],
    )


def _case(image: Path, label: Path) -> Case:
    return Case(
        id=image.name.removesuffix(FILE_ENDING),
        original=image,
        load=lambda: (sitk.ReadImage(str(image)), sitk.ReadImage(str(label))),
    )


def _labels(folder: Path) -> dict[str, int]:
    highest = max(int(sitk.GetArrayFromImage(sitk.ReadImage(str(f))).max()) for f in folder.glob("*" + FILE_ENDING))
    return {"background": 0, **{f"class{value}": value for value in range(1, highest + 1)}}
