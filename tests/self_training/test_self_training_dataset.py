from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_crossmatch.self_training.dataset import MixedDataset

MANAGER = LabelManager({"background": 0, "shell": 1, "ignore": 2}, None)


class Memory:
    """Cases with the given class_locations."""

    def __init__(self, identifiers, locations=None):
        self.identifiers, self.locations = identifiers, locations or {}

    def load_case(self, identifier):
        image = np.zeros((1, 9, 9, 9), np.float32)
        return image, np.zeros((1, 9, 9, 9), np.int16), None, {"class_locations": self.locations}


@pytest.mark.parametrize(("labeled", "pseudo"), [(4, 155), (97, 301), (155, 4), (30, 44), (1, 1), (997, 5003)])
def test_half_and_half(labeled, pseudo):
    datasets = [Memory([f"l{i}" for i in range(labeled)]), Memory([f"p{i}" for i in range(pseudo)])]
    mixed = MixedDataset(datasets, MANAGER)
    share = np.mean([identifier[0] == "l" for identifier in mixed.identifiers])
    assert share == pytest.approx(0.5, abs=0.006)
    _, counts = np.unique(mixed.identifiers.astype(str), return_counts=True)
    assert len(counts) == labeled + pseudo and len(set(counts)) <= 2
    assert len(mixed.identifiers) < 1_100_000


def test_one_dataset_stays_as_it_is():
    assert MixedDataset([Memory(["a", "b"])], MANAGER).identifiers.tolist() == ["a", "b"]


def test_patches_of_labeled_cases_lie_as_without_an_ignore_label_and_of_others_on_annotated_voxels():
    labeled = Memory(["l"])
    pseudo = Memory(["p"], {(-1, 0, 1): np.array([[0, 4, 4, 4]])})
    stock = LabelManager({"background": 0, "shell": 1}, None)

    def boxes(dataset, manager, case):
        loader = nnUNetDataLoader(dataset, 2, (3, 3, 3), (3, 3, 3), manager)
        np.random.seed(0)
        locations = dataset.load_case(case)[3]["class_locations"]
        return [loader.get_bbox((9, 9, 9), False, locations)[0] for _ in range(20)]

    mixed = MixedDataset([labeled, pseudo], MANAGER)
    assert boxes(mixed, MANAGER, "l") == boxes(labeled, stock, "l")
    assert set(map(tuple, boxes(mixed, MANAGER, "p"))) == {(3, 3, 3)}


def test_a_case_is_loaded_from_its_own_dataset():
    first, second = Memory(["l"], {1: "of l"}), Memory(["p"], {1: "of p"})
    mixed = MixedDataset([first, second], MANAGER)
    assert SimpleNamespace(**mixed.load_case("p")[3]).class_locations[1] == "of p"
