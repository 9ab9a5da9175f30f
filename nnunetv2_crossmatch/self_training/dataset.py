"""Labeled and pseudo-labeled cases in one dataset for nnU-Net's loader, half and half."""

import warnings
from fractions import Fraction
from pathlib import Path

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_crossmatch.nnunet.loaders import Blosc2Dataset, LoadedCase, PreprocessedDataset

# of MixedDataset's fully labeled cases, in every worker that imports this module
warnings.filterwarnings("ignore", "Warning! No annotated pixels")


class PseudoLabeledDataset(Blosc2Dataset):
    """Images of the preprocessed unlabeled cases with the preprocessed pseudo-labels of ``folder``."""

    def __init__(self, folder: Path, images: Path, identifiers: list[str]):
        super().__init__(str(folder), identifiers)
        self.images = images

    def load_case(self, identifier: str) -> LoadedCase:
        data, seg = (
            blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **self.mmap_kwargs)
            for file in (self.images / f"{identifier}.b2nd", Path(self.source_folder) / f"{identifier}_seg.b2nd")
        )
        return data, seg, None, load_pickle(str(Path(self.source_folder) / f"{identifier}.pkl"))


class MixedDataset:
    """Cases of several datasets, every dataset drawn (nearly) equally often.

    nnU-Net's loader draws each identifier of its dataset equally often, so those of a small dataset are repeated
    in ``identifiers``.

    A loader with an ignore label centers patches on annotated voxels. The cases of a dataset that has no ignore label
    know none: an empty list makes the loader place their patches anywhere, as it does without an ignore label.
    """

    def __init__(self, datasets: list[PreprocessedDataset], label_manager: LabelManager):
        self._owner = {case: dataset for dataset in datasets for case in dataset.identifiers}
        self._annotated = (-1, *label_manager.all_labels)
        largest = max(len(dataset.identifiers) for dataset in datasets)
        ratios = [Fraction(largest, len(dataset.identifiers)).limit_denominator(50) for dataset in datasets]
        common = np.lcm.reduce([ratio.denominator for ratio in ratios])
        # an array, because the loader would make one of a list at every draw
        self.identifiers = np.array(
            [
                case
                for dataset, ratio in zip(datasets, ratios, strict=True)
                for case in dataset.identifiers * int(ratio * common)
            ],
            dtype=object,
        )

    def load_case(self, identifier: str) -> LoadedCase:
        data, seg, seg_prev, properties = self._owner[identifier].load_case(identifier)
        locations = {self._annotated: [], **properties["class_locations"]}
        return data, seg, seg_prev, {**properties, "class_locations": locations}
