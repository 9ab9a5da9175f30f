import itertools

import pytest
import torch

from nnunetv2_crossmatch.losses.adaptive_contrast import adaptive_contrast, assign_centers, simplex_centers
from tests.losses.slow import slow_adaptive_contrast


@pytest.mark.parametrize("classes", [2, 3, 4, 14, 16])
def test_centers_are_unit_vectors_pairwise_at_minus_1_over_k_minus_1(classes):
    gram = (centers := simplex_centers(classes, 16)) @ centers.T
    expected = torch.full((classes, classes), -1 / (classes - 1)).fill_diagonal_(1)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 17])
def test_more_classes_than_channels_are_refused(classes):
    with pytest.raises(ValueError, match=f"16 classes .*got {classes}"):
        simplex_centers(classes, 16)


def test_the_assignment_is_the_best_of_all_permutations():
    torch.manual_seed(0)
    means, centers = torch.randn(5, 8), simplex_centers(5, 8)
    means[2] = 0  # a class not seen yet takes what is left
    assigned = assign_centers(means, centers)
    assert sorted(assigned.tolist()) == list(range(5))
    unit = means / means.norm(dim=1, keepdim=True).clamp(min=1e-9)

    def total(permutation):
        return sum(float(unit[c] @ centers[k]) for c, k in enumerate(permutation))

    assert total(assigned.tolist()) == pytest.approx(max(total(p) for p in itertools.permutations(range(5))))


@pytest.mark.parametrize("filled", [(7, 7, 7), (7, 2, 0), (0, 0, 0)])
@pytest.mark.parametrize("present", [(1, 1, 1), (0, 1, 0), (0, 0, 0)])
def test_equals_the_slow_version_whatever_is_filled_and_present(filled, present):
    torch.manual_seed(0)
    queries = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    entries = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    known, present = torch.arange(7) < torch.tensor(filled)[:, None], torch.tensor(present, dtype=torch.bool)
    centers = simplex_centers(3, 8).double().requires_grad_()
    loss = adaptive_contrast(queries, present, entries, known, centers, temperature=0.3, center_weight=0.2)
    assert loss.item() == pytest.approx(
        slow_adaptive_contrast(queries, present, entries, known, centers, 0.3, 0.2), abs=1e-6
    )
    loss.backward()
    assert entries.grad is None and centers.grad is None
    assert queries.grad.isfinite().all()
    assert [bool(g.any()) for g in queries.grad] == present.tolist()
