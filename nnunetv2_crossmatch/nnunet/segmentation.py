"""Segmentations alone through nnU-Net's pre- and postprocessing, which know them only beside their images."""

from pathlib import Path

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

SEGMENTATION_SUFFIXES = ("_seg.b2nd", ".pkl")


def preprocess_segmentation(
    seg: NDArray[np.integer],
    shape: tuple[int, ...],
    outside: NDArray[np.bool_],
    properties: dict,
    plans: PlansManager,
    configuration_name: str,
    dataset_json: dict,
) -> tuple[NDArray[np.int16], dict]:
    """The steps of nnU-Net's ``run_case_npy``: transpose, crop, resample, collect locations of every class.

    What they were for the image stands in its properties, so that the image itself is not read again.

    Args:
        seg: (1, z, y, x) as read from its file.
        shape: of the preprocessed image, without channels.
        outside: bool (1, *shape), where the preprocessed image has no data.
        properties: of the image, as nnU-Net's preprocessing has left them.
        dataset_json: with an ignore label.

    Returns:
        Segmentation (1, *shape), -1 where it is 0 and outside; the properties with the segmentation's locations.
    """
    configuration = plans.get_configuration(configuration_name)
    label_manager = plans.get_label_manager(dataset_json)
    seg = seg.transpose([0, *(axis + 1 for axis in plans.transpose_forward)])
    seg = seg[(slice(None), *bounding_box_to_slice(properties["bbox_used_for_cropping"]))]
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    target_spacing = [*spacing[: 3 - len(configuration.spacing)], *configuration.spacing]  # 2d leaves the slices
    resampled = configuration.resampling_fn_seg(seg, shape, spacing, target_spacing).astype(np.int16)
    resampled[(resampled == 0) & outside] = -1

    preprocessor = configuration.preprocessor_class(verbose=False)
    wanted = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    # with an ignore label nnU-Net centers patches on annotated voxels of this key
    annotated = [-1, *label_manager.all_labels]
    locations = preprocessor._sample_foreground_locations(resampled, [*wanted, annotated])
    resampled = preprocessor.modify_seg_fn(resampled, plans, dataset_json, configuration)
    return resampled, {**properties, "class_locations": locations}


def save_segmentation(seg: NDArray[np.int16], properties: dict, file: Path, patch: tuple[int, ...]) -> None:
    """Write ``file`` + each of :data:`SEGMENTATION_SUFFIXES`, as nnU-Net's loader wants them."""
    blocks, chunks = comp_blosc2_params(seg.shape, patch, seg.itemsize)
    nnUNetDatasetBlosc2.save_seg(np.ascontiguousarray(seg), f"{file}_seg", chunks, blocks)
    write_pickle(properties, f"{file}.pkl")


def probabilities_in_scan(
    logits: NDArray[np.floating], properties: dict, plans: PlansManager, configuration_name: str, dataset_json: dict
) -> NDArray[np.floating]:
    """Softmax or sigmoid of predicted logits, both (classes or regions, z, y, x), on the grid of the original scan."""
    _, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        plans,
        plans.get_configuration(configuration_name),
        plans.get_label_manager(dataset_json),
        properties,
        return_probabilities=True,
    )
    return probabilities
