"""One CT series of a DICOM download, checked before it is trusted."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import below
from nnunetv2_crossmatch.utilities.errors import DatasetError, some

POSITION, ORIENTATION, INSTANCE = "0020|0032", "0020|0037", "0020|0013"  # ImagePositionPatient, ...
TOLERANCE = 0.2  # of the slice distance; the positions in the files are rounded


@dataclass(frozen=True)
class Series:
    """image: in HU, slices by their position. ascending: whether InstanceNumber grows with the position."""

    image: sitk.Image
    ascending: bool


@lru_cache(maxsize=1)  # image and label of a case are read one after the other
def read_series(folder: Path) -> Series:
    """The only series below a folder, however deep the downloader nested it.

    Raises:
        DatasetError: no series, several, slices of different size or orientation, a missing or doubled slice.
    """
    files = _only_series(folder)
    headers = [_header(file) for file in files]
    for what, values in (
        ("sizes", {header.GetSize()[:2] for header in headers}),
        ("orientations", {tuple(np.round(_numbers(header, ORIENTATION), 3).tolist()) for header in headers}),
    ):
        if len(values) > 1:
            raise DatasetError([f"{folder}: the slices have different {what} ({sorted(values)[:4]}): mixed series?"])
    orientation = _numbers(headers[0], ORIENTATION)
    normal = np.cross(orientation[:3], orientation[3:])
    positions = np.array([_numbers(header, POSITION) @ normal for header in headers])
    order = np.argsort(positions, kind="stable")  # by itself SimpleITK does not sort slices that are there twice
    files, headers = [files[i] for i in order], [headers[i] for i in order]
    _check_distances(folder, files, positions[order])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    first, last = (int(headers[index].GetMetaData(INSTANCE)) for index in (0, -1))
    return Series(reader.Execute(), ascending=first <= last)


def _only_series(folder: Path) -> list[str]:
    found = {
        f"{place} ({series})": sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(place), series)
        for place in sorted({file.parent for file in below(folder, "*") if file.is_file()})
        for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(place))
    }
    if len(found) != 1:
        named = ", ".join(f"{name}, {len(files)} files" for name, files in found.items())
        fix = f": {named}. Move the others away" if found else ""
        raise DatasetError([f"{folder}: one DICOM series was expected, {len(found)} found{fix}."])
    (files,) = found.values()
    size = _header(files[0]).GetSize()
    if len(size) > 2 and size[2] > 1:
        raise DatasetError(
            [
                f"{files[0]} holds all {size[2]} slices (multi-frame DICOM). Split it into one file for each slice, "
                "for example with dcm4che's emf2sf."
            ]
        )
    if len(files) < 2:
        raise DatasetError([f"{folder}: the DICOM series has one slice only."])
    return list(files)


def _header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _numbers(header: sitk.ImageFileReader, tag: str) -> np.ndarray:
    return np.array([float(number) for number in header.GetMetaData(tag).split("\\")])


def _check_distances(folder: Path, files: list[str], positions: np.ndarray) -> None:
    """SimpleITK takes the mean distance of uneven slices and only warns."""
    distances = np.diff(positions)
    moved = distances > 1e-3  # mm
    usual = float(np.median(distances[moved])) if moved.any() else 0.0
    is_doubled = ~moved | (distances < TOLERANCE * usual)
    doubled = np.flatnonzero(is_doubled)
    uneven = np.flatnonzero(~is_doubled & (np.abs(distances - usual) > TOLERANCE * usual))
    problems = []
    if len(doubled):
        pairs = [f"{Path(files[i]).name} and {Path(files[i + 1]).name}" for i in doubled]
        problems.append(f"{folder}: slices are there twice: {some(pairs)}. Remove one of each.")
    if len(uneven):
        places = [f"{positions[i]:g} and {positions[i + 1]:g}" for i in uneven]
        problems.append(
            f"{folder}: slices are missing: they lie {usual:g} mm apart, but not those at {some(places)} mm. Download "
            "the series again."
        )
    if problems:
        raise DatasetError(problems)
