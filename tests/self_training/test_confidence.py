import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_crossmatch.self_training.confidence import confident_labels, confident_shares, with_ignore_label

CLASSES = {"background": 0, "shell": 1, "core": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def test_softmax_against_a_voxel_by_voxel_oracle():
    probabilities = np.random.default_rng(0).dirichlet([0.5] * 3, (4, 5, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    label, predicted = confident_labels(probabilities, LabelManager(CLASSES, None), 0.7, 3)
    for voxel in np.ndindex(4, 5, 6):
        p = [probabilities[(c, *voxel)] for c in range(3)]
        best = p.index(max(p))
        assert predicted[voxel] == best
        assert label[voxel] == (best if p[best] >= np.float32(0.7) else 3)
    assert {0, 1, 2, 3} == set(np.unique(label))


def test_regions_against_a_voxel_by_voxel_oracle():
    probabilities = np.random.default_rng(0).uniform(0, 1, (2, 6, 7, 8)).astype(np.float32)
    label, predicted = confident_labels(probabilities, LabelManager(REGIONS, [1, 2]), 0.7, 3)
    for voxel in np.ndindex(6, 7, 8):
        whole, core = (probabilities[(r, *voxel)] for r in range(2))
        best = 2 if core > 0.5 else 1 if whole > 0.5 else 0
        sure = {0: min(1 - whole, 1 - core), 1: min(whole, 1 - core), 2: min(whole, core)}[best]
        assert predicted[voxel] == best
        assert label[voxel] == (best if sure >= np.float32(0.7) else 3)
    contradiction = np.array([0.1, 0.9], np.float32).reshape(2, 1, 1, 1)
    assert confident_labels(contradiction, LabelManager(REGIONS, [1, 2]), 0.7, 3)[0] == 3


def test_threshold_0_keeps_all_and_is_inclusive():
    probabilities = np.array([0.25, 0.75, 0.0], np.float32).reshape(3, 1, 1, 1)
    manager = LabelManager(CLASSES, None)
    assert [confident_labels(probabilities, manager, t, 3)[0].item() for t in (0, 0.75, 0.76)] == [1, 1, 3]


def test_shares():
    label, predicted = np.array([0, 0, 1, 3]), np.array([0, 0, 1, 1])
    assert confident_shares(label, predicted, [0, 1, 2]) == {"0": 1.0, "1": 0.5, "2": None}


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_an_ignore_label_is_the_highest_and_nnunet_accepts_it(labels):
    dataset_json = {"labels": labels}
    assert with_ignore_label(dataset_json)["labels"]["ignore"] == 3
    assert "ignore" not in dataset_json["labels"]
    assert LabelManager(with_ignore_label(dataset_json)["labels"], [1, 2]).ignore_label == 3


def test_the_datasets_own_ignore_label_stays():
    own = {"labels": {"background": 0, "shell": 1, "ignore": 2}}
    assert with_ignore_label(own) is own
