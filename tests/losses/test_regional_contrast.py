import math

import pytest
import torch

from nnunetv2_crossmatch.losses.regional_contrast import negative_classes, regional_contrast
from tests.losses.slow import cosine, slow_regional_contrast


def example(seed: int = 0):
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 5, 8), (4, 8), (4, 6, 8))]


@pytest.mark.parametrize("hard", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 0, 1)])
def test_equals_the_slow_version(hard):
    queries, positives, negatives = example()
    hard, present = torch.tensor(hard, dtype=torch.bool), torch.tensor([True, True, True, False])
    loss = regional_contrast(queries, hard, positives, negatives, present, temperature=0.5)
    assert loss.item() == pytest.approx(
        slow_regional_contrast(queries, hard, positives, negatives, present, 0.5), abs=1e-9
    )


def test_only_the_queries_of_classes_with_hard_voxels_get_a_gradient():
    queries, positives, negatives = example()
    hard, present = torch.tensor([True, False, True, False]), torch.ones(4, dtype=torch.bool)
    regional_contrast(queries, hard, positives, negatives, present, temperature=0.5).backward()
    assert positives.grad is None and negatives.grad is None
    assert [bool(g.any()) for g in queries.grad] == hard.tolist()


def test_without_a_hard_voxel_the_loss_is_0_with_finite_gradients():
    nothing = torch.zeros(4, dtype=torch.bool)
    for queries, positives, negatives in (example(), [torch.zeros_like(t).requires_grad_() for t in example()]):
        loss = regional_contrast(queries, nothing, positives, negatives, nothing, temperature=0.1)
        loss.backward()
        assert loss == 0 and (queries.grad == 0).all()


def test_negative_classes_are_the_softmax_of_similarity_over_the_other_present_classes():
    torch.manual_seed(0)
    means, present = torch.randn(5, 8, dtype=torch.float64), torch.tensor([True, True, False, True, True])
    probabilities = negative_classes(means, present, 0.5)
    for c in range(5):
        weights = [math.exp(cosine(means[c], means[v]) / 0.5) if present[v] and v != c else 0.0 for v in range(5)]
        assert probabilities[c].tolist() == pytest.approx([w / sum(weights) for w in weights])


@pytest.mark.parametrize("present", [[False, True, False], [False, False, False]])
def test_a_class_alone_can_still_be_drawn_from(present):
    probabilities = negative_classes(torch.zeros(3, 4), torch.tensor(present), 0.5)
    assert probabilities.sum(1).tolist() == pytest.approx([1, 1, 1])
