"""Dice, Jaccard, 95HD and ASD of two binary masks, the numbers of ``medpy.metric.binary``.

Masks are boolean arrays of one shape and any number of axes. medpy: https://loli.github.io/medpy
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]


def dice(prediction: Mask, reference: Mask) -> float:
    """2 |P and R| / (|P| + |R|), in [0, 1]; NaN where both are empty."""
    size = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return 2 * np.count_nonzero(prediction & reference) / size if size else float("nan")


def jaccard(prediction: Mask, reference: Mask) -> float:
    """|P and R| / |P or R|, in [0, 1]; NaN where both are empty."""
    size = np.count_nonzero(prediction | reference)
    return np.count_nonzero(prediction & reference) / size if size else float("nan")


def surface(mask: Mask) -> NDArray[np.intp]:
    """Indices (points, axes) of the voxels with a face on the background or on the edge of the array.

    Raises:
        ValueError: the mask is empty.
    """
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        raise ValueError("An empty mask has no surface.")
    # outside its bounding box a mask is background, so cropping to it moves no surface
    inside = mask[boxes[0]]
    return np.argwhere(inside & ~ndimage.binary_erosion(inside)) + [axis.start for axis in boxes[0]]


def surface_distances(
    prediction: ArrayLike, reference: ArrayLike, spacing: ArrayLike = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each point to the nearest point of the other :func:`surface`.

    A k-d tree of the two surfaces in place of medpy's distance transform of the volume: the same distances
    in a fraction of the memory and the time.

    Args:
        prediction: surface, (points, axes).
        reference: surface, (points, axes).
        spacing: size of a voxel along each axis; 1 gives distances in voxels.

    Returns:
        From prediction to reference, and from reference to prediction.
    """
    there, back = (np.asarray(points) * np.asarray(spacing, dtype=float) for points in (prediction, reference))
    return KDTree(back, balanced_tree=False).query(there)[0], KDTree(there, balanced_tree=False).query(back)[0]


def hd95(there: NDArray[np.float64], back: NDArray[np.float64]) -> float:
    """95th percentile of the distances of both directions, pooled."""
    return float(np.percentile(np.concatenate((there, back)), 95))


def asd(there: NDArray[np.float64]) -> float:
    """Mean distance from the prediction's surface to the reference's: directed, as medpy's ``asd`` is."""
    return float(there.mean())
