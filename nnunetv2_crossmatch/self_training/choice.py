"""Which scans to annotate next: where models disagree, and no scan like another. Arrays in, numbers out."""

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

RARE = 0.1  # of a class's usual voxels; a scan with fewer counts less, or one stray voxel would be full disagreement


def disagreement(members: NDArray[np.integer], classes: Collection[Collection[int]]) -> NDArray[np.float64]:
    """How far the segmentations of one scan differ, in voxels.

    Args:
        members: (members, z, y, x), at least two.
        classes: the values of each class or region.

    Returns:
        (2, classes): voxels that one of two members gives to the class and the other does not, and voxels that any of
        the two gives to it; both are means over all pairs. Their ratio is the pairs' Jaccard distance.
    """
    number = len(members)
    pairs = number * (number - 1) / 2
    votes = np.arange(number + 1)
    differ, either = votes * (number - votes), pairs - (number - votes) * (number - votes - 1) / 2
    counts = [
        np.bincount(np.isin(members, list(values)).sum(0).reshape(-1), minlength=number + 1) for values in classes
    ]
    return np.array([[count @ differ / pairs for count in counts], [count @ either / pairs for count in counts]])


def shares(differ: ArrayLike, either: ArrayLike) -> NDArray[np.float64]:
    """Disagreement over predicted foreground, per scan and class, from 0 to 1.

    The predicted voxels are at least :data:`RARE` of what is usual for the class, so that a few voxels where there is
    nothing are no great disagreement.

    Args:
        differ, either: (scans, classes), see :func:`disagreement`.

    Returns:
        (scans, classes); nan for a class that no scan has.
    """
    differ, either = np.asarray(differ, float), np.asarray(either, float)
    with np.errstate(invalid="ignore"):
        usual = [np.median(of_class[of_class > 0]) if of_class.any() else np.nan for of_class in either.T]
    return differ / np.maximum(either, RARE * np.array(usual))


def score(differ: ArrayLike, either: ArrayLike) -> NDArray[np.float64]:
    """The mean of :func:`shares` over the classes, so that a rare class counts as much as a large one; (scans,)."""
    of_classes = shares(differ, either)
    known = ~np.isnan(of_classes).all(0)
    return of_classes[:, known].mean(1) if known.any() else np.zeros(len(of_classes))


def k_center(features: ArrayLike, weights: ArrayLike, count: int) -> list[int]:
    """Greedy k-center: each time the scan that is farthest from those chosen, distances times the scans' weights.

    After Gonzalez, Clustering to minimize the maximum intercluster distance, 1985; for active learning Sener and
    Savarese, https://arxiv.org/abs/1708.00489. With weights a scan is chosen that is hard and unlike the others.

    Args:
        features: (scans, features).
        weights: (scans,), not negative. The heaviest scan is the first.

    Returns:
        Numbers of ``count`` scans, or of all if there are fewer, in the order of their choice.
    """
    features, weights = np.asarray(features, float), np.asarray(weights, float)
    chosen: list[int] = []
    nearest = np.full(len(weights), np.inf)
    for _ in range(min(count, len(weights))):
        left = [i for i in range(len(weights)) if i not in chosen]
        # among equals, as copies of one scan are, the heavier one
        best = max(left, key=lambda i: (weights[i] * nearest[i] if chosen else 0, weights[i], -i))
        chosen.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[best], axis=1))
    return chosen
