"""Shared by all converters: raw cases in, a semi-supervised nnU-Net dataset out."""

import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import SimpleITK as sitk
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunetv2_crossmatch.nnunet.images import nearest_integers
from nnunetv2_crossmatch.preprocessing.splits import PATIENTS, ensure_splits, known_patients
from nnunetv2_crossmatch.utilities.errors import DatasetError, printable, some
from nnunetv2_crossmatch.utilities.files import NO_UNICODE, check_writable, is_unicode, locked, read_list, write_text
from nnunetv2_crossmatch.utilities.folders import is_litter

LISTS = Path(__file__).parent / "lists"
UNFINISHED = ".unfinished"  # in the folder of a new dataset while it is written
MISSING_FILES = "missing_files.txt"
NIFTI_ENDINGS = (".nii.gz", ".nii")
T = TypeVar("T")
Grid = TypeVar("Grid", sitk.Image, sitk.ImageFileReader, sitk.Image | sitk.ImageFileReader)


@dataclass(frozen=True)
class Case:
    """One scan. ``image`` and ``label`` (None: there is none) are read when they are wanted, the image first.

    original: the image file, if nnU-Net can read it as it is; an unlabeled image is then neither read nor copied.
    """

    id: str
    image: Callable[[], sitk.Image]
    label: Callable[[], sitk.Image] | None = None
    patient: str | None = None
    original: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """What a converter found. ``labels`` as in dataset.json, background first.

    stored: {value in the source's label files: value of ``labels``}; None where they are the same.
    official: test cases of the benchmark's organizers, beside those of the published lists.
    absent: {what: files that the published lists name and that are not here}; see :func:`present`.
    """

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    labeled: list[Case]
    unlabeled: list[Case]
    validation: list[Case] = field(default_factory=list)
    test: list[Case] = field(default_factory=list)
    official: list[Case] = field(default_factory=list)
    stored: Mapping[int, int] | None = None
    file_ending: str = ".nii.gz"
    absent: Mapping[str, list[Path]] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, list[Case]]:
        """Cases by the ending of their folders' names (imagesTr, labelsTr, ...)."""
        return {
            "Tr": self.labeled,
            "Un": self.unlabeled,
            "Val": self.validation,
            "Ts": self.test,
            "Ts_official": self.official,
        }


def write_dataset(conversion: Conversion, dataset_id: int) -> Path:
    """Write ``nnUNet_raw/DatasetXXX_NAME`` and its patient-wise splits; returns the folder.

    Labeled cases go to imagesTr/labelsTr, unlabeled ones to imagesUn or, where the originals can be
    read, into unlabeled.json; their labels are hidden in labelsUn, from which nothing is learned. Validation
    and test cases go to imagesVal/labelsVal and imagesTs/labelsTs, the organizers' own test cases to
    imagesTs_official/labelsTs_official.

    Raises:
        FileExistsError: a dataset with this id is there already.
        DatasetError: a file that cannot be read, a label of another size than its image or with values
            outside the map. Nothing is left behind.
    """
    with new_dataset(dataset_id, conversion.name) as folder:
        _write_folder(conversion, folder)
        absent = {**conversion.absent, **_absent_masks(conversion, folder)}
        if absent:
            write_text(_as_list(str(file) for files in absent.values() for file in files), folder / MISSING_FILES)
    for what, files in absent.items():
        names = some([f"{file.parent.name}/{file.name}" for file in files])
        print(f"{len(files)} {what} not here and left out: {names}. All: {folder / MISSING_FILES}", file=sys.stderr)
    if not (conversion.validation or conversion.test or conversion.official):
        print("There is no test scan, so a comparison has only the folds' validation cases.", file=sys.stderr)
    return folder


def _absent_masks(conversion: Conversion, folder: Path) -> dict[str, list[Path]]:
    """Of held-out scans, as they would be called in the dataset."""
    masks = {
        f"masks of scans in images{part}": [
            folder / f"labels{part}" / f"{case.id}{conversion.file_ending}" for case in cases if case.label is None
        ]
        for part, cases in conversion.parts.items()
        if part not in ("Tr", "Un")
    }
    return {what: files for what, files in masks.items() if files}


@contextmanager
def new_dataset(dataset_id: int, name: str) -> Iterator[Path]:
    """A new raw dataset folder to write into, and then its patient-wise splits; removed if the writing fails.

    Raises:
        FileExistsError: a dataset with this id is there already.
    """
    folder = Path(nnUNet_raw) / f"Dataset{dataset_id:03d}_{name}"
    with locked(folder.with_name(f".Dataset{dataset_id:03d}.lock")):  # a second process waits, and then the id is taken
        require_free(dataset_id)
        for killed in find_candidate_datasets(dataset_id):  # what a run left that was killed
            shutil.rmtree(folder.with_name(str(killed)))
        folder.mkdir()
        unfinished = folder / UNFINISHED
        unfinished.touch()
        try:
            yield folder
            check_writable(folder)  # SimpleITK truncates a NIfTI file on a full disk without a word
        except BaseException:
            shutil.rmtree(folder)
            raise
        unfinished.unlink()
    # now, because nnU-Net's own split would put a patient's scans on both sides, and fails with few cases
    preprocessed = Path(nnUNet_preprocessed) / folder.name
    cases = list(get_filenames_of_train_images_and_targets(str(folder)))
    ensure_splits(preprocessed, cases, known_patients(folder, preprocessed))


def require_free(dataset_id: int) -> None:
    """Raises FileExistsError: a dataset with this id is there already, finished."""
    # where only the raw folder of a killed conversion has the id, it is free
    names = map(str, find_candidate_datasets(dataset_id))  # of numpy
    if taken := [name for name in names if not (Path(nnUNet_raw) / name / UNFINISHED).exists() or _is_used(name)]:
        places = [Path(str(place)) for place in (nnUNet_raw, nnUNet_preprocessed, nnUNet_results) if place.is_set()]
        folders = [str(folder) for place in places for name in taken if (folder := place / name).exists()]
        raise FileExistsError(
            f"Dataset id {dataset_id} is taken by {', '.join(folders)}. Remove that or choose another id."
        )


def _is_used(dataset: str) -> bool:
    return any(
        (Path(str(place)) / dataset).exists() for place in (nnUNet_preprocessed, nnUNet_results) if place.is_set()
    )


def _write_folder(conversion: Conversion, folder: Path) -> None:
    parts, ending = conversion.parts, conversion.file_ending
    values = np.hstack(list(conversion.labels.values())).tolist()  # a region of nnU-Net has several
    stored = conversion.stored or {value: value for value in values}
    originals = {}
    with tqdm(total=sum(map(len, parts.values())), desc=folder.name, disable=not sys.stderr.isatty()) as progress:
        for part, case in ((part, case) for part, cases in parts.items() for case in cases):
            original = case.original if part == "Un" else None
            grid = _read(case, "image", partial(_header, original) if original else case.image)
            if original:
                originals[case.id] = {"images": [str(original.resolve())]}
            else:
                _write(grid, folder / f"images{part}" / f"{case.id}_0000{ending}")
            if case.label is not None:
                label = on_grid(_read(case, "label", case.label), grid, case.id)
                _write(_mapped(label, stored, case.id), folder / f"labels{part}" / f"{case.id}{ending}")
            progress.update()
    if originals:
        _write_json(originals, folder / "unlabeled.json")
    if patients := {case.id: case.patient for case in chain(*parts.values()) if case.patient is not None}:
        _write_json(patients, folder / PATIENTS)
    _write_json(
        {
            "channel_names": {str(index): name for index, name in enumerate(conversion.channels)},
            "labels": conversion.labels,
            "numTraining": len(conversion.labeled),
            "file_ending": ending,
        },
        folder / "dataset.json",
    )


def on_grid(label: sitk.Image, grid: sitk.Image | sitk.ImageFileReader, case: str) -> sitk.Image:
    """The label on the image's voxel grid.

    A label whose header describes the image's grid in another order of axes is reordered. Otherwise its
    voxels are taken in stored order, because headers of labels are often wrong, and get the image's geometry.

    Raises:
        DatasetError: the sizes differ, or the label has several channels.
    """
    if (channels := label.GetNumberOfComponentsPerPixel()) > 1:
        raise DatasetError([f"{case}: the label has {channels} channels (a color image?); a mask has one."])
    if label.GetDimension() == 3 and not np.allclose(label.GetDirection(), grid.GetDirection(), atol=1e-3):
        orientation = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(grid.GetDirection())
        reordered = sitk.DICOMOrient(label, orientation)
        tolerance = 0.1 * min(grid.GetSpacing())
        if reordered.GetSize() == grid.GetSize() and all(
            np.allclose(getattr(reordered, get)(), getattr(grid, get)(), atol=tolerance)
            for get in ("GetSpacing", "GetOrigin")
        ):
            label = reordered
    if label.GetSize() != grid.GetSize():
        raise DatasetError([f"{case}: the image has {grid.GetSize()} voxels (x, y, z), its label {label.GetSize()}."])
    placed = sitk.Image(label)
    placed.SetSpacing(grid.GetSpacing())
    placed.SetOrigin(grid.GetOrigin())
    placed.SetDirection(grid.GetDirection())
    return placed


def _mapped(label: sitk.Image, stored: Mapping[int, int], case: str) -> sitk.Image:
    array = nearest_integers(sitk.GetArrayViewFromImage(label))  # some are saved as floats: 0.99999994
    mapped = np.full(array.shape, 255, np.uint8)
    for value, target in stored.items():
        mapped[array == value] = target
    if (foreign := ~np.isin(array, list(stored))).any():
        values = ", ".join(map(str, np.unique(array[foreign])[:10].tolist()))
        raise DatasetError([f"{case}: the label has the values {values}; only {sorted(stored)} are expected."])
    image = sitk.GetImageFromArray(mapped)
    image.CopyInformation(label)
    return image


def _read(case: Case, what: str, read: Callable[[], Grid]) -> Grid:
    try:
        return read()
    except (RuntimeError, OSError, KeyError) as e:  # SimpleITK's, h5py's and a missing h5 key
        raise DatasetError([f"{case.id}: the {what} cannot be read ({' '.join(str(e).split())[-300:]})."]) from e


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(_readable(file))
    reader.ReadImageInformation()
    return reader


def read_image(file: Path) -> sitk.Image:
    return sitk.ReadImage(_readable(file))


def _readable(file: Path) -> str:
    """Raises DatasetError: a name at which SimpleITK aborts the process."""
    if not is_unicode(file):
        raise DatasetError([f"{file} {NO_UNICODE}. Rename it."])
    return str(file)


def read_h5(file: Path, key: str, axes: str, spacing: tuple[float, float, float]) -> sitk.Image:
    """A volume of the community's h5 files, whose axes are "xyz" or "zyx"; spacing in mm, x y z."""
    with h5py.File(file) as content:
        array = content[key][()]
    image = sitk.GetImageFromArray(array.T if axes == "xyz" else array)
    image.SetSpacing(spacing)
    return image


def below(source: Path, pattern: str) -> list[Path]:
    """Files and folders with such a name anywhere below, through links too, sorted.

    What an operating system adds to an archive (``__MACOSX``, ``._*``, ...) and other hidden files are none.
    """
    found = []
    for place, folders, files in os.walk(source, followlinks=True):
        folders[:] = filter(_is_shown, folders)
        names = [*folders, *filter(_is_shown, files)]
        found += [Path(place) / name for name in fnmatch.filter(names, pattern)]
    return sorted(found)


def _is_shown(name: str) -> bool:
    return not (name.startswith(".") or is_litter(Path(name)))


def nifti_file(folder: Path, stem: str) -> Path:
    """``stem.nii.gz`` or ``stem.nii``, whichever exists; the former where neither does."""
    files = [folder / f"{stem}{ending}" for ending in NIFTI_ENDINGS]
    return next((file for file in files if file.exists()), files[0])


def listed(name: str) -> list[str]:
    """The names of a published list."""
    return read_list(LISTS / f"{name}.txt")


def take_labeled(
    train: Sequence[T], labeled: int, needed: Mapping[str, Callable[[T], list[Path]]], allowed: Collection[int] = ()
) -> tuple[Sequence[T], Sequence[T]]:
    """The first ``labeled`` of a list, and the rest.

    Args:
        needed: {what they are, in the plural: files of one scan}, of scans that stay labeled; the images first.
        allowed: numbers that may be asked for; any by default.

    Raises:
        DatasetError: a labeled scan is not here, in a line for each kind of file; none would be labeled, or none
            unlabeled. Says what number is possible.
    """
    if not 0 < labeled < len(train):
        raise DatasetError(
            [f"--labeled {labeled}: there are {len(train)} training scans. Take 1 to {len(train) - 1} of them."]
        )
    whole = [all(file.exists() for of in needed.values() for file in of(one)) for one in train]
    possible = [*whole, False].index(False)
    images = next(iter(needed.values()))
    spare = any(file.exists() for one in train[possible:] for file in images(one))
    limit = possible if spare else possible - 1  # or nothing would be left unlabeled
    if labeled > limit:
        numbers = allowed or range(1, possible + 1)
        most, whole_ones = (max((n for n in numbers if n <= top), default=0) for top in (limit, possible))
        why = ", because one scan has to stay unlabeled" if most < whole_ones else ""
        wanted = {what: [file for one in train[:labeled] for file in of(one)] for what, of in needed.items()}
        allows = f"at most --labeled {most}{why}" if most else "no labeled scan beside an unlabeled one"
        raise missing_error(wanted, f"What is here allows {allows}.")
    return train[:labeled], train[labeled:]


def missing_error(wanted: Mapping[str, Sequence[Path]], *then: str) -> DatasetError:
    """A line for each kind of file of which some are not here; those that it does not name are listed in nnUNet_raw."""
    missing = {what: [str(path) for path in paths if not path.exists()] for what, paths in wanted.items()}
    lines = [
        f"{len(paths)} of {len(wanted[what])} {what} are missing: {some(paths)}."
        for what, paths in missing.items()
        if paths
    ]
    every = [path for paths in missing.values() for path in paths]
    if len(every) > 3:
        write_text(_as_list(every), file := Path(nnUNet_raw) / MISSING_FILES)
        lines.append(f"All missing files: {file}")
    return DatasetError([*lines, *then])


def _as_list(files: Iterable[str]) -> str:
    return printable("\n".join(files)) + "\n"


def wrong_folder(source: Path, expected: str) -> DatasetError:
    """What was expected in the folder and what is there."""
    if not source.is_dir():
        return DatasetError([f"{source} is not a folder. Expected: {expected}."])
    there = sorted(file for file in source.iterdir() if not file.name.startswith("."))
    names = [f"{file.name}/" if file.is_dir() else file.name for file in there]
    found = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return DatasetError([f"{source}: expected {expected}. Found: {found or 'nothing'}."])


def require(paths: Iterable[Path], what: str) -> None:
    """Raise DatasetError if paths are missing.

    Args:
        what: they are, in the plural.
    """
    paths = list(paths)
    if not all(path.exists() for path in paths):
        raise missing_error({what: paths})


def present(paths: Iterable[Path], what: str, absent: dict[str, list[Path]]) -> list[Path]:
    """The paths that exist; the others are added to ``absent[what]``, what they are, in the plural."""
    found: list[Path] = []
    for path in paths:
        (found if path.exists() else absent.setdefault(what, [])).append(path)
    return found


def _write(image: sitk.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def _write_json(content: dict, file: Path) -> None:
    file.write_text(json.dumps(content, indent=2))
