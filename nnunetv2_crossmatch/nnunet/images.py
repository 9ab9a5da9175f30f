"""Images and masks as nnU-Net's readers give them, and what these leave to their caller."""

import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from numpy.typing import NDArray

from nnunetv2_crossmatch.utilities.errors import DatasetError
from nnunetv2_crossmatch.utilities.files import is_unicode, read_json

TIFF_ENDINGS = (".tif", ".tiff")
NEARLY = 1e-3  # how far from an integer a mask's value may be and still be meant as one
PLACEHOLDER = 999  # by which nnU-Net multiplies the spacing of a 2D image for the axis that it does not have

_SPACING = 1e-5  # relative; what is left of a number in a header of six digits
_ORIGIN = 0.1  # voxels
_COSINES = 1e-3


def files_beside(file: Path) -> list[Path]:
    """Further files that an image or a mask consists of: the ``.json`` with a TIFF's spacing, if it has one.

    nnU-Net looks for CASE.json beside CASE_0000.tif, and cuts five letters off any other name, too. A file without
    a channel number has its own name here: scan.json beside scan.tif.
    """
    if file.suffix.lower() not in TIFF_ENDINGS:
        return []
    stems = dict.fromkeys((re.sub(r"_\d{4}$", "", file.stem), file.stem))
    return [beside for stem in stems if (beside := file.with_name(stem + ".json")).is_file()][:1]


def says_where(file: Path) -> bool:
    """Whether the header has a geometry; a TIFF has none but that of its spacing file."""
    return file.suffix.lower() not in TIFF_ENDINGS or bool(files_beside(file))


def read_images(files: Sequence[Path], reader: BaseReaderWriter) -> tuple[NDArray, dict]:
    """``reader.read_images`` with the spacing of a TIFF wherever its file is; see :func:`files_beside`.

    Raises:
        ValueError: the spacing file is not one.
    """
    said = StringIO()
    spacing = _tiff_spacing(files[0]) if isinstance(reader, Tiff3DIO) else None  # first: nnU-Net names no line
    try:
        with redirect_stdout(said):
            data, properties = reader.read_images([str(file) for file in files])
        if spacing is not None:
            properties["spacing"] = spacing
            if files_beside(files[0]):
                said = StringIO()  # that there is none where nnU-Net looks
    finally:
        print(said.getvalue(), end="")
    return data, properties


def _tiff_spacing(tiff: Path) -> list[float]:
    """z, y, x; 1 without a spacing file, as nnU-Net assumes."""
    beside = files_beside(tiff)
    if not beside:
        return [1.0, 1.0, 1.0]
    try:
        spacing = read_json(beside[0])["spacing"]
        if len(spacing) == 3:
            return [float(s) for s in spacing]
    except DatasetError as e:
        raise ValueError(*e.problems) from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f'{beside[0]} is not of the form {{"spacing": [z, y, x]}}')


def read_spacing(files: Sequence[Path], reader: BaseReaderWriter) -> NDArray:
    """z, y, x in mm, by the header alone where that is enough."""
    if isinstance(reader, Tiff3DIO):
        return np.array(_tiff_spacing(files[0]))
    if type(reader) is SimpleITKIO:
        header = sitk.ImageFileReader()
        header.SetFileName(str(files[0]))
        header.ReadImageInformation()
        if header.GetDimension() == 3:
            return np.abs(header.GetSpacing()[::-1])
    return np.asarray(read_images(files[:1], reader)[1]["spacing"], dtype=float)


def find_reader(dataset_json: dict, examples: Iterable[Path]) -> type[BaseReaderWriter]:
    """The reader that nnU-Net chooses: the first that can read an example, or by the ending alone if none can.

    Raises:
        RuntimeError: nnU-Net's: it has none for this file ending.
    """
    said = StringIO()  # it prints every failure
    for example in (*(str(file) for file in examples if is_unicode(file)), None):
        with suppress(RuntimeError), redirect_stdout(said), redirect_stderr(said):
            return determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
    raise RuntimeError(f"nnU-Net has no reader for {dataset_json['file_ending']}, the file_ending of dataset.json.")


def unknown_reader(dataset_json: dict) -> list[str]:
    """A line if dataset.json asks for a reader that there is not; nnU-Net then takes another."""
    name = dataset_json.get("overwrite_image_reader_writer")
    if name in (None, "None"):  # as nnU-Net: either means that none is asked for
        return []
    try:
        recursive_find_reader_writer_by_name(name)
    except RuntimeError:
        return [
            f"nnU-Net has no reader {name!r}, overwrite_image_reader_writer in dataset.json, and chooses one by the "
            "file ending. Correct or remove it."
        ]
    return []


def is_flat(shape: Sequence[int], spacing: Sequence[float]) -> bool:
    """Whether it is a 2D image, whose first spacing nnU-Net made up."""
    return shape[0] == 1 and bool(np.isclose(spacing[0], PLACEHOLDER * max(spacing[1:])))


def is_photograph(shape: Sequence[int], spacing: Sequence[float]) -> bool:
    """Whether it is a 2D image that knows no mm, as PNG; nnU-Net's reader calls its pixels 1 wide."""
    return is_flat(shape, spacing) and np.array_equal(spacing[1:], (1, 1))


def are_volumes(median_shape: Sequence[float]) -> bool:
    """Whether nnU-Net plans for 3D: the median of the labeled scans has more than one slice."""
    return min(median_shape) > 1


def has_no_geometry(properties: dict) -> bool:
    """Whether the header is that of a bare array: 1 x 1 x 1 mm, at 0, not turned."""
    if not np.array_equal(properties["spacing"], (1, 1, 1)):
        return False
    _, origin, axes = _placed(properties)
    return not np.any(origin) and (axes.size != 9 or bool(np.array_equal(np.abs(axes.reshape(3, 3)), np.eye(3))))


def differences(own: dict, other: dict) -> list[str]:
    """In what two properties of nnU-Net's readers differ: "spacing", "origin", "orientation"."""
    spacing, origin, axes = _placed(own)
    other_spacing, other_origin, other_axes = _placed(other)
    found = []
    if not np.allclose(spacing, other_spacing, rtol=_SPACING, atol=0):
        found.append("spacing")
    if (
        origin.shape == other_origin.shape
        and np.abs(origin - other_origin).max(initial=0) > _ORIGIN * other_spacing.min()
    ):
        found.append("origin")
    if axes.shape == other_axes.shape and not np.allclose(axes, other_axes, atol=_COSINES):
        found.append("orientation")
    return found


def _placed(properties: dict) -> tuple[NDArray, NDArray, NDArray]:
    """Spacing (3,), origin (axes,) and direction cosines (axes * axes,), as far as the reader notes them."""
    spacing = np.asarray(properties["spacing"], dtype=float)
    itk, nibabel = (properties.get(f"{reader}_stuff", {}) for reader in ("sitk", "nibabel"))
    affine: Any = nibabel.get("reoriented_affine", nibabel.get("original_affine"))
    if affine is None:
        return spacing, np.array(itk.get("origin", ())), np.array(itk.get("direction", ()))
    axes = np.asarray(affine)[:3, :3]
    return spacing, np.asarray(affine)[:3, 3], (axes / np.linalg.norm(axes, axis=0)).ravel()


def nearest_integers(values: NDArray) -> NDArray:
    """Values that are within ``NEARLY`` of an integer rounded to it, the others as they are."""
    if values.dtype.kind in "biu":
        return values
    result = np.array(values, order="C")
    flat = result.reshape(-1)
    for start in range(0, flat.size, 1 << 20):  # a CT's differences would be another half gigabyte
        piece = flat[start : start + (1 << 20)]
        rounded = np.rint(piece)
        near = np.abs(piece - rounded) <= NEARLY
        piece[near] = rounded[near]
    return result
