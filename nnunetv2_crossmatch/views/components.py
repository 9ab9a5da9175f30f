"""Connected components of labels."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def keep_largest_components(label: Tensor) -> Tensor:
    """Of each foreground class or region of each sample its largest component; the rest becomes background.

    Voxels that touch at a corner are connected. Works on the CPU whatever the device.

    Args:
        label: class index (batch, 1, *spatial), 0 the background, or bool (batch, regions, *spatial).
    """
    array = label.cpu().numpy()
    result = np.zeros_like(array)
    for sample, kept in zip(array, result, strict=True):
        for channel, into in zip(sample, kept, strict=True):
            boxes = ndimage.find_objects(channel.astype(np.int32))  # a component is sought where its class is
            for value, box in enumerate(boxes, 1):
                if box is not None:
                    into[box][_largest(channel[box] == value)] = value
    return torch.from_numpy(result).to(label.device)


def _largest(mask: np.ndarray) -> np.ndarray:
    components, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return components == 1 + np.bincount(components.ravel())[1:].argmax() if count > 1 else mask
