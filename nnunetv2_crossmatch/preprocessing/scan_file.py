"""What the file of a scan says of itself, checked before anything is allocated for its voxels."""

import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from nibabel.openers import ImageOpener
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_crossmatch.nnunet.images import TIFF_ENDINGS
from nnunetv2_crossmatch.utilities.errors import printable
from nnunetv2_crossmatch.utilities.files import NO_UNICODE, is_unicode

REPLACE = "Replace the file or remove the case."
_MOST_PER_BYTE = 1032  # deflate, the compression of gzip, PNG, NRRD and mostly of TIFF, makes no more bytes of one
_HARMLESS = 1 << 30  # voxels; other compressions of a nearly empty scan make more
_SPACINGS = (1e-9, 1e9)  # mm, or whatever a TIFF is said to be measured in


class BadScan(ValueError):
    """One scan that cannot be used; the message names it, the reason and the fix."""


def check_file(file: Path, reader: BaseReaderWriter, is_mask: bool = False) -> None:
    """Raises BadScan (or whatever a library says of the file): empty, a header that cannot be true or used.

    Nothing but this may open a scan that was not checked by it: some names abort SimpleITK and with it the process.

    Args:
        is_mask: spacing and axes may be anything, because nnU-Net takes those of the scan.
    """
    if not is_unicode(file):
        raise BadScan(printable(f"{file} {NO_UNICODE}. Rename it or remove the case."))
    size = file.stat().st_size
    if size == 0:
        raise BadScan(f"{file} is empty. {REPLACE}")
    if file.name.lower().endswith((".nii", ".nii.gz")):
        shape, has_numbers = _nifti(file, is_mask)
    elif file.name.lower().endswith(TIFF_ENDINGS):
        with tifffile.TiffFile(file) as tif:
            shape, has_numbers = tif.series[0].shape, tif.series[0].dtype.kind in "biuf"
    elif isinstance(reader, SimpleITKIO):
        shape, has_numbers = _simpleitk(file, is_mask)
    else:
        return  # Pillow refuses huge images itself
    if not has_numbers:
        raise BadScan(f"{file}: complex numbers, colors or vectors. Save it with one number per voxel.")
    if any(extent <= 0 for extent in shape) or not shape:
        raise BadScan(f"{file} has no voxel (extents {'x'.join(map(str, shape))}). {REPLACE}")
    if math.prod(shape) > max(_MOST_PER_BYTE * size, _HARMLESS):
        raise BadScan(f"{file} claims {'x'.join(map(str, shape))} voxels in {size} bytes. {REPLACE}")


def check_spacing(spacing: Iterable[float], named: str) -> None:
    """Raises BadScan: not numbers, or not plausible; resampling to it would fill the memory."""
    values = list(spacing)
    if not all(isinstance(s, int | float | np.number) and _SPACINGS[0] <= s <= _SPACINGS[1] for s in values):
        raise BadScan(f"{named}: spacing {' x '.join(map(str, values))}. Correct it or remove the case.")


def _nifti(file: Path, is_mask: bool) -> tuple[tuple[int, ...], bool]:
    image = nibabel.load(file)
    with ImageOpener(file) as stream:
        header = image.header_class.from_fileobj(stream, check=False)  # as it is; the checked one has been repaired
    if bytes(header["magic"].item()).rstrip(b"\0") != header.single_magic.rstrip(b"\0"):
        raise _voxels_elsewhere(file)
    dimensions = int(header["dim"][0])
    shape = tuple(int(extent) for extent in header["dim"][1 : 1 + dimensions])
    if not is_mask:  # of a single slice's thickness nothing depends
        check_spacing([s for s, extent in zip(header["pixdim"][1:4], shape, strict=False) if extent > 1], str(file))
    if file.name.lower().endswith(".gz"):
        _check_to_the_end(file)
    return shape, image.get_data_dtype().kind in "iuf" and set(shape[4:]) <= {1}  # the fifth holds vectors


def _check_to_the_end(file: Path) -> None:
    """Where gzip's checksum is; no reader goes that far."""
    stream = zlib.decompressobj(wbits=31)
    with file.open("rb") as zipped:
        while not stream.eof:
            piece = zipped.read(1 << 16)
            if not piece:
                raise EOFError("the file ends too early")
            stream.decompress(piece)


def _simpleitk(file: Path, is_mask: bool) -> tuple[tuple[int, ...], bool]:
    if _names_another_file(file):
        raise _voxels_elsewhere(file)
    header = sitk.ImageFileReader()
    header.SetFileName(str(file))
    header.ReadImageInformation()
    if not is_mask:
        check_spacing(header.GetSpacing()[:3], str(file))
        direction = np.reshape(header.GetDirection(), (header.GetDimension(), -1))
        if not np.allclose(direction @ direction.T, np.eye(len(direction)), atol=1e-2):
            raise BadScan(f"{file}: its axes are not orthonormal. Resample it or remove the case.")
    kind = sitk.GetPixelIDValueAsString(header.GetPixelIDValue())
    return header.GetSize(), header.GetNumberOfComponents() == 1 and "complex" not in kind


def _names_another_file(file: Path) -> bool:
    """Headers may do that. What is read there nobody has listed, and its changes would go unnoticed."""
    with file.open("rb") as stream:
        head = stream.read(1 << 16)
    if head.startswith(b"NRRD"):
        return re.search(rb"^data ?file:", re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0], re.M | re.I) is not None
    voxels = re.search(rb"^ElementDataFile\s*[=:]\s*(\S+)", head, re.M)
    return (voxels is not None and voxels[1].upper() != b"LOCAL") or file.suffix in (".hdr", ".img")


def _voxels_elsewhere(file: Path) -> BadScan:
    return BadScan(f"{file} names another file for its voxels. Save both in one.")
