"""Shared by all converters: raw cases in, a semi-supervised nnU-Net dataset out."""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from tqdm import tqdm

from nnunetv2_crossmatch.preprocessing.listing import DatasetError
from nnunetv2_crossmatch.preprocessing.splits import PATIENTS, ensure_splits, known_patients

FILE_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Case:
    """One scan. ``load`` reads image and label (None if there is none) when they are wanted.

    original: the image file, if nnU-Net can read it as it is; unlabelled images are then not copied.
    """

    id: str
    load: Callable[[], tuple[sitk.Image, sitk.Image | None]]
    patient: str | None = None
    original: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """What a converter found. ``labels`` as in dataset.json, background first."""

    name: str
    channel: str
    labels: dict[str, int]
    labeled: list[Case]
    unlabeled: list[Case]
    validation: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)


def write_dataset(conversion: Conversion, dataset_id: int) -> Path:
    """Write ``nnUNet_raw/DatasetXXX_NAME`` and its patient-wise splits; returns the folder.

    Labelled cases go to imagesTr/labelsTr, unlabelled ones to imagesUn or, where the originals can be
    read, into unlabeled.json; their labels are hidden in labelsUn, which training never reads. Validation
    and test cases go to imagesVal/labelsVal and imagesTs/labelsTs.

    Raises:
        FileExistsError: a dataset with this id is there already.
    """
    if len(taken := find_candidate_datasets(dataset_id)):
        raise FileExistsError(
            f"Dataset id {dataset_id} is taken by {', '.join(taken)} in nnUNet_raw, nnUNet_preprocessed or "
            "nnUNet_results. Remove it there or choose another -d."
        )
    folder = Path(nnUNet_raw) / f"Dataset{dataset_id:03d}_{conversion.name}"
    incoming = folder.with_name(f".{folder.name}")
    shutil.rmtree(incoming, ignore_errors=True)  # of a run that was killed
    patients = {
        case.id: case.patient
        for case in (*conversion.labeled, *conversion.unlabeled, *conversion.validation, *conversion.test)
        if case.patient is not None
    }
    _write_folder(conversion, incoming, patients)
    incoming.rename(folder)
    # now, because nnU-Net's own split would put a patient's scans on both sides, and fails with few cases
    preprocessed = Path(nnUNet_preprocessed) / folder.name
    ensure_splits(preprocessed, [case.id for case in conversion.labeled], known_patients(folder, preprocessed))
    return folder


def _write_folder(conversion: Conversion, folder: Path, patients: dict[str, str]) -> None:
    parts = {"Tr": conversion.labeled, "Un": conversion.unlabeled, "Val": conversion.validation, "Ts": conversion.test}
    originals = {}
    with tqdm(total=sum(map(len, parts.values())), desc=folder.name, disable=not sys.stderr.isatty()) as progress:
        for part, cases in parts.items():
            for case in cases:
                image, label = case.load()
                if part == "Un" and case.original is not None:
                    originals[case.id] = {"images": [str(case.original.resolve())]}
                else:
                    _write(image, folder / f"images{part}" / f"{case.id}_0000{FILE_ENDING}")
                if label is not None:
                    _write(_integer_label(label, case.id), folder / f"labels{part}" / f"{case.id}{FILE_ENDING}")
                progress.update()
    if originals:
        _write_json(originals, folder / "unlabeled.json")
    if patients:
        _write_json(patients, folder / PATIENTS)
    _write_json(
        {
            "channel_names": {"0": conversion.channel},
            "labels": conversion.labels,
            "numTraining": len(conversion.labeled),
            "file_ending": FILE_ENDING,
        },
        folder / "dataset.json",
    )


def require(paths: Iterable[Path], what: str) -> None:
    """Raise DatasetError that names every missing path."""
    missing = [f"{path} is missing ({what})." for path in paths if not path.exists()]
    if missing:
        raise DatasetError(missing)


def present(paths: Iterable[Path], what: str) -> Iterator[Path]:
    """The paths that exist; the others are named on stderr."""
    for path in paths:
        if path.exists():
            yield path
        else:
            print(f"missing, left out: {path} ({what})", file=sys.stderr)


def image_from_array(array: np.ndarray, spacing_zyx: tuple[float, float, float]) -> sitk.Image:
    """An image from an array with axes z, y, x."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_zyx[::-1])
    return image


def _integer_label(label: sitk.Image, case: str) -> sitk.Image:
    array = sitk.GetArrayFromImage(label)
    if not np.array_equal(array, array.astype(np.uint8)):
        raise DatasetError([f"{case}: the label holds values that are no integers from 0 to 255."])
    integer = sitk.GetImageFromArray(array.astype(np.uint8))
    integer.CopyInformation(label)
    return integer


def _write(image: sitk.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def _write_json(content: dict, file: Path) -> None:
    file.write_text(json.dumps(content, indent=2))
