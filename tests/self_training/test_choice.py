from itertools import combinations

import numpy as np
import pytest

from nnunetv2_crossmatch.self_training.choice import RARE, disagreement, k_center, score, shares


@pytest.mark.parametrize("number", [2, 3, 5])
def test_disagreement_is_the_mean_over_pairs(number):
    members = np.random.default_rng(number).integers(0, 4, (number, 3, 4, 5))
    classes = [(1,), (2, 3), (9,)]
    differ, either = disagreement(members, classes)
    for i, values in enumerate(classes):
        slow_differ, slow_either = [], []
        for one, other in combinations(members, 2):
            a, b = (np.vectorize(lambda v, values=values: v in values)(member) for member in (one, other))
            slow_differ.append((a ^ b).sum())
            slow_either.append((a | b).sum())
        assert differ[i] == pytest.approx(np.mean(slow_differ))
        assert either[i] == pytest.approx(np.mean(slow_either))


def slow_score(differ, either):
    result = []
    for scan in range(len(differ)):
        of_classes = []
        for c in range(len(differ[0])):
            there = [row[c] for row in either if row[c] > 0]
            if there:
                of_classes.append(differ[scan][c] / max(either[scan][c], RARE * sorted(there)[len(there) // 2]))
        result.append(sum(of_classes) / len(of_classes) if of_classes else 0)
    return result


def test_score_is_the_mean_share_over_classes():
    rng = np.random.default_rng(0)
    either = rng.integers(1, 100, (5, 3)).astype(float)
    either[:, 2] = 0
    differ = either * rng.uniform(size=(5, 3))
    assert score(differ, either) == pytest.approx(slow_score(differ.tolist(), either.tolist()))
    assert score(np.zeros((2, 1)), np.zeros((2, 1))).tolist() == [0, 0]


def test_a_rare_class_counts_as_much_as_a_large_one_and_a_stray_voxel_for_little():
    either = np.array([[10_000, 20], [10_000, 20], [10_000, 20]])
    assert score([[5_000, 0], [0, 10], [0, 0]], either).tolist() == [0.25, 0.25, 0]
    either = np.array([[1000.0], [1000.0], [1.0]])
    assert shares([[100], [200], [1]], either)[:, 0].tolist() == [0.1, 0.2, 0.01]
    assert np.isnan(shares([[0.0]], [[0.0]])).all()


def slow_k_center(features, weights, count):
    chosen = [max(range(len(weights)), key=lambda i: weights[i])]
    while len(chosen) < count:
        gains = {}
        for i in set(range(len(weights))) - set(chosen):
            distances = [
                sum((a - b) ** 2 for a, b in zip(features[i], features[j], strict=True)) ** 0.5 for j in chosen
            ]
            gains[i] = weights[i] * min(distances)
        chosen.append(max(gains, key=lambda i: gains[i]))
    return chosen


def test_k_center_takes_the_farthest_by_weight():
    rng = np.random.default_rng(0)
    for _ in range(10):
        features, weights = rng.normal(size=(12, 3)), rng.uniform(size=12)
        assert k_center(features, weights, 5) == slow_k_center(features.tolist(), weights.tolist(), 5)


def test_ten_are_not_one_scan_ten_times():
    features = np.zeros((12, 2))
    features[10:] = [[5, 0], [0, 5]]
    weights = np.full(12, 0.9)
    weights[10:] = 0.5
    assert set(k_center(features, weights, 3)) == {0, 10, 11}
    assert sorted(k_center(features, weights, 20)) == list(range(12))
    assert k_center(np.zeros((3, 1)), [0.1, 0.3, 0.2], 3) == [1, 2, 0]
