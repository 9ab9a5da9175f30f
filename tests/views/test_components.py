import itertools

import pytest
import torch

from nnunetv2_crossmatch.views.components import keep_largest_components


def slow(mask: torch.Tensor) -> set[tuple[int, ...]]:
    """Flood fill; the largest set of voxels that touch, corners included."""
    left, best = {tuple(v) for v in mask.nonzero().tolist()}, set()
    while left:
        component, front = set(), [left.pop()]
        while front:
            voxel = front.pop()
            component.add(voxel)
            for shift in itertools.product((-1, 0, 1), repeat=len(voxel)):
                neighbor = tuple(a + b for a, b in zip(voxel, shift, strict=True))
                if neighbor in left:
                    left.remove(neighbor)
                    front.append(neighbor)
        best = max(best, component, key=len)
    return best


@pytest.mark.parametrize("spatial", [(14, 15), (6, 7, 8)])
def test_each_class_of_each_sample_keeps_its_largest_component(spatial):
    torch.manual_seed(0)
    label = (torch.rand(2, 1, *spatial) * 8).int().clamp(max=3).remainder(4).to(torch.uint8)
    label[label == 3] = 0
    kept = keep_largest_components(label)
    assert kept.dtype == label.dtype
    for sample in range(2):
        for c in (1, 2):
            expected = slow(label[sample, 0] == c)
            found = kept[sample, 0] == c
            assert found.sum() == len(expected) > 1
            assert (label[sample, 0][found] == c).all()


def test_regions_one_by_one_and_nothing_at_all():
    label = torch.zeros(1, 2, 5, 5, dtype=torch.bool)
    assert torch.equal(keep_largest_components(label), label)
    label[0, 0, 0, :2] = label[0, 0, 4, 4] = label[0, 1, 4, 4] = True
    kept = keep_largest_components(label)
    assert kept[0, 0].sum() == 2 and kept[0, 1, 4, 4] and not kept[0, 0, 4, 4]
