"""One predicted mask against its reference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from numpy.typing import NDArray

from nnunetv2_crossmatch.evaluation import metrics
from nnunetv2_crossmatch.utilities.files import NO_UNICODE, is_unicode

METRICS = ("dice", "jaccard", "hd95_voxels", "asd_voxels", "hd95_mm", "asd_mm")


class BadMask(ValueError):
    """A mask that cannot be evaluated; the message names it and the reason."""


@dataclass(frozen=True)
class Labels:
    """What the values of a mask mean.

    Attributes:
        classes: foreground classes or regions, each with its values.
        known: every value a prediction may hold, background included.
        ignore: value of the reference's voxels that count nowhere.
    """

    classes: dict[str, tuple[int, ...]]
    known: tuple[int, ...]
    ignore: int | None


def measure_case(
    reference_file: Path, prediction_file: Path, reader: BaseReaderWriter, labels: Labels
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Every metric of every class, by the rules of :func:`measure`.

    Ignored voxels are cut out of both masks; the edge of the cut is treated like the edge of the scan. The
    single slice of a 2D image is no axis: its distances are those in the plane.

    Returns:
        Values (classes, metrics) in the order of ``METRICS``, and (classes,) whether the class was missed.

    Raises:
        BadMask: unreadable, more than one channel, values outside the map, size or spacing unlike the reference's.
    """
    ignored = () if labels.ignore is None else (labels.ignore,)
    reference, spacing = _read(reference_file, reader, labels.known + ignored)
    prediction, predicted_spacing = _read(prediction_file, reader, labels.known)
    if reference.shape != prediction.shape or not np.allclose(spacing, predicted_spacing):
        raise BadMask(
            f"{prediction_file} has {_geometry(prediction, predicted_spacing)}, its reference {reference_file} "
            f"{_geometry(reference, spacing)}. Predict the image that the reference was drawn on."
        )
    if len(reference) == 1:
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]

    counted = ~np.isin(reference, ignored)
    measured = [
        measure(np.isin(prediction, values) & counted, np.isin(reference, values), spacing)
        for values in labels.classes.values()
    ]
    return np.array([values for values, _ in measured]), np.array([missed for _, missed in measured])


def measure(prediction: metrics.Mask, reference: metrics.Mask, spacing: NDArray) -> tuple[list[float], bool]:
    """The metrics of two masks, empty ones included.

    Where both are empty nothing is defined: all NaN. Where one is, the class was missed (or invented): overlap
    0, and each distance is the diagonal of the scan, the longest there can be.

    Args:
        spacing: size of a voxel in mm, (axes,).

    Returns:
        Values in the order of ``METRICS``, and whether exactly one of the masks is empty.
    """
    found, there_is = prediction.any(), reference.any()
    if not (found or there_is):
        return [float("nan")] * len(METRICS), False
    units = (np.ones(prediction.ndim), spacing)
    if not (found and there_is):
        diagonals = [float(np.linalg.norm(np.multiply(prediction.shape, unit))) for unit in units]
        return [0.0, 0.0, *np.repeat(diagonals, 2).tolist()], True
    values = [metrics.dice(prediction, reference), metrics.jaccard(prediction, reference)]
    surfaces = metrics.surface(prediction), metrics.surface(reference)
    for unit in units:
        there, back = metrics.surface_distances(*surfaces, unit)
        values += [metrics.hd95(there, back), metrics.asd(there)]
    return values, False


def _read(file: Path, reader: BaseReaderWriter, known: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Mask (z, y, x) and its spacing in mm."""
    if not is_unicode(file):
        raise BadMask(f"{file} {NO_UNICODE}. Rename it.")
    try:
        mask, properties = reader.read_seg(str(file))
    except Exception as e:  # each reader has its own
        raise BadMask(f"{file} cannot be read: {e}") from e
    if len(mask) != 1:
        raise BadMask(f"{file} has {len(mask)} channels. A mask has one.")
    unknown = np.unique(mask[~np.isin(mask, known)])
    if unknown.size:
        raise BadMask(f"{file} holds {unknown[:10].tolist()}, but dataset.json has the labels {sorted(known)}.")
    return mask[0], np.asarray(properties["spacing"], dtype=float)


def _geometry(mask: NDArray, spacing: NDArray) -> str:
    return f"{'x'.join(map(str, mask.shape))} voxels of {'x'.join(f'{s:g}' for s in spacing)} mm (z, y, x)"
