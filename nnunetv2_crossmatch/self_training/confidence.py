"""Which voxels of a prediction become labels, and which the ignore label."""

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def with_ignore_label(dataset_json: dict) -> dict:
    """dataset.json with an ignore label: its own, else the next after the highest label, as nnU-Net wants it."""
    labels = dataset_json["labels"]
    if "ignore" in labels:
        return dataset_json
    values = [v for value in labels.values() for v in (value if isinstance(value, list | tuple) else [value])]
    return {**dataset_json, "labels": {**labels, "ignore": max(map(int, values)) + 1}}


def confident_labels(
    probabilities: np.ndarray, label_manager: LabelManager, threshold: float, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels where the network is sure, the ignore label elsewhere.

    A voxel's confidence is the probability of what its label says: the softmax of the class, or with regions
    the least sure of them, each by its sigmoid if the label lies in it and by 1 - sigmoid if not. So a core that is
    likelier than the whole around it counts as unsure.

    Args:
        probabilities: (classes or regions, z, y, x) after nnU-Net's softmax or sigmoid.
        threshold: confident is what reaches it.

    Returns:
        The pseudo-label and the whole prediction, both (z, y, x) uint16.
    """
    predicted = np.asarray(label_manager.convert_probabilities_to_segmentation(probabilities)).astype(np.uint16)
    if label_manager.has_regions:
        confidence = np.ones(predicted.shape, probabilities.dtype)
        for region, probability in zip(label_manager.foreground_regions, probabilities, strict=True):
            said = np.where(np.isin(predicted, region), probability, 1 - probability)
            np.minimum(confidence, said, out=confidence)
    else:
        confidence = probabilities.max(0)
    return np.where(confidence >= threshold, predicted, ignore_label).astype(np.uint16), predicted


def confident_shares(label: np.ndarray, predicted: np.ndarray, labels: list[int]) -> dict[str, float | None]:
    """Share of each class's predicted voxels that are confident; None where none was predicted."""
    kept = label == predicted
    counts = {c: predicted == c for c in labels}
    return {str(c): float(kept[of_class].mean()) if of_class.any() else None for c, of_class in counts.items()}
