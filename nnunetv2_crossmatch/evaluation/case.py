"""One predicted mask against its reference."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunetv2_crossmatch.evaluation import metrics
from nnunetv2_crossmatch.nnunet.images import differences, nearest_integers, read_spacing, says_where
from nnunetv2_crossmatch.nnunet.labels import Labels
from nnunetv2_crossmatch.utilities.files import NO_UNICODE, is_unicode

METRICS = ("dice", "jaccard", "hd95_voxels", "asd_voxels", "hd95_mm", "asd_mm")


class BadMask(ValueError):
    """A mask that cannot be evaluated; the message names it and the reason."""


@dataclass(frozen=True)
class Measured:
    """One case.

    Attributes:
        values: (classes, metrics) in the order of ``METRICS``.
        missed: (classes,), whether only one of the masks has the class.
        in_reference: (classes,), whether the reference has it.
        odd: masks whose header has another geometry than the scan's, and in what it differs.
    """

    values: NDArray[np.float64]
    missed: NDArray[np.bool_]
    in_reference: NDArray[np.bool_]
    odd: dict[Path, str]


def measure_case(
    reference_file: Path, prediction_file: Path, reader: BaseReaderWriter, labels: Labels, scan: Path | None = None
) -> Measured:
    """Every metric of every class, by the rules of :func:`measure`.

    Ignored voxels are cut out of both masks; the edge of the cut is treated like the edge of the scan. The
    single slice of a 2D image is no axis: its distances are those in the plane.

    Args:
        scan: an image file, whose spacing counts; without one the prediction's does, which nnU-Net copies from it.

    Raises:
        BadMask: unreadable, more than one channel, values outside the map, another size than the reference's.
    """
    ignored = () if labels.ignore is None else (labels.ignore,)
    reference, of_reference = _read(reference_file, reader, labels.known + ignored)
    prediction, of_prediction = _read(prediction_file, reader, labels.known)
    if reference.shape != prediction.shape:
        raise BadMask(
            f"{prediction_file} has {_voxels(prediction)} voxels (z, y, x), its reference {reference_file} "
            f"{_voxels(reference)}. Predict the image that the reference was drawn on."
        )
    headers = {reference_file: of_reference, prediction_file: of_prediction}
    spacings = {file: np.asarray(header["spacing"], dtype=float) for file, header in headers.items() if header}
    if scan is not None:
        spacing = _spacing_of(scan, reader)
    else:
        spacing = spacings.get(prediction_file, spacings.get(reference_file, np.ones(3)))  # ones: TIFFs alone
    whose = "the prediction" if scan is None else "its scan"
    odd = {
        file: f"{_times(own)} mm (z, y, x), {whose} {_times(spacing)}"
        for file, own in spacings.items()
        if not np.allclose(own, spacing, rtol=1e-5, atol=0)
    }
    if of_reference and of_prediction:  # whose header nnU-Net copies from the scan
        placed = [what for what in differences(of_reference, of_prediction) if what != "spacing"]
        if placed:
            before = [odd[reference_file]] if reference_file in odd else []
            odd[reference_file] = ", ".join([*before, f"another {' and '.join(placed)} than the prediction"])
    if len(reference) == 1:
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]

    counted = ~np.isin(reference, ignored)
    measured = [
        measure(np.isin(prediction, values) & counted, np.isin(reference, values), spacing)
        for values in labels.classes.values()
    ]
    return Measured(
        np.array([values for values, _, _ in measured]),
        np.array([found != there_is for _, found, there_is in measured]),
        np.array([there_is for _, _, there_is in measured]),
        odd,
    )


def measure(prediction: metrics.Mask, reference: metrics.Mask, spacing: NDArray) -> tuple[list[float], bool, bool]:
    """The metrics of two masks, empty ones included.

    Where both are empty nothing is defined: all NaN. Where one is, the class was missed (or invented): overlap
    0, and each distance is the diagonal of the scan, the longest there can be.

    Args:
        spacing: size of a voxel in mm, (axes,).

    Returns:
        Values in the order of ``METRICS``, and whether the prediction and the reference have the class.
    """
    found, there_is = bool(prediction.any()), bool(reference.any())
    if not (found or there_is):
        return [float("nan")] * len(METRICS), found, there_is
    units = (np.ones(prediction.ndim), spacing)
    if not (found and there_is):
        diagonals = [float(np.linalg.norm(np.multiply(prediction.shape, unit))) for unit in units]
        return [0.0, 0.0, *np.repeat(diagonals, 2).tolist()], found, there_is
    values = [metrics.dice(prediction, reference), metrics.jaccard(prediction, reference)]
    surfaces = metrics.surface(prediction), metrics.surface(reference)
    for unit in units:
        there, back = metrics.surface_distances(*surfaces, unit)
        values += [metrics.hd95(there, back), metrics.asd(there)]
    return values, found, there_is


def _read(file: Path, reader: BaseReaderWriter, known: tuple[int, ...]) -> tuple[NDArray, dict | None]:
    """Mask (z, y, x) and what the reader notes of its header; None where a TIFF has none."""
    if not is_unicode(file):
        raise BadMask(f"{file} {NO_UNICODE}. Rename it.")
    try:
        with redirect_stdout(StringIO()):  # that a TIFF has no spacing file
            mask, properties = reader.read_seg(str(file))
    except Exception as e:  # each reader has its own
        raise BadMask(f"{file} cannot be read: {e}") from e
    if len(mask) != 1:
        raise BadMask(f"{file} has {len(mask)} channels. A mask has one: save the labels 0, 1, 2, ... as gray values.")
    mask = nearest_integers(mask)
    unknown = np.unique(mask[~np.isin(mask, known)])
    if unknown.size:
        raise BadMask(f"{file} holds {unknown[:10].tolist()}, but dataset.json has the labels {sorted(known)}.")
    return mask[0], properties if says_where(file) else None


def _spacing_of(scan: Path, reader: BaseReaderWriter) -> NDArray:
    try:
        with redirect_stdout(StringIO()):
            return read_spacing([scan], reader)
    except Exception as e:
        raise BadMask(f"{scan} cannot be read: {e}") from e


def _voxels(mask: NDArray) -> str:
    return "x".join(map(str, mask.shape))


def _times(figures: Iterable[float]) -> str:
    return " x ".join(f"{figure:.7g}" for figure in figures)
