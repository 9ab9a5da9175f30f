import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from nnunetv2_crossmatch.networks.voxels import class_sums, draw_voxels, gather_voxels

LEVELS = {2: [(8, 12), (4, 6), (4, 3)], 3: [(4, 8, 12), (4, 4, 6), (2, 2, 3)]}  # with unequal strides


def levels_of(dimensions: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3 + i, *size, requires_grad=True) for i, size in enumerate(LEVELS[dimensions])]


def at(levels, sample, place):
    finest, features = levels[0].shape[2:], []
    for level in levels:
        coarse = [p // (full // size) for p, size, full in zip(place, level.shape[2:], finest, strict=True)]
        features.append(level[(sample, slice(None), *coarse)])
    return torch.cat(features)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_gathered_features_are_those_of_the_voxel_on_every_level(dimensions):
    levels = levels_of(dimensions)
    shape = (2, *levels[0].shape[2:])
    index = torch.randint(0, int(torch.tensor(shape).prod()), (3, 5))
    gathered = gather_voxels(levels, index)
    for row, i in zip(gathered.flatten(0, 1), index.flatten().tolist(), strict=True):
        sample, *place = map(int, np.unravel_index(i, shape))
        assert torch.equal(row, at(levels, sample, place))
    gathered.sum().backward()
    assert [int(level.grad.sum()) for level in levels] == [15 * level.shape[1] for level in levels]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_class_sums_equal_the_sum_over_gathered_voxels(dimensions):
    levels = levels_of(dimensions)
    label = torch.randint(0, 3, (2, 1, *levels[0].shape[2:]))
    masks = [label == c for c in (0, 1, 2, 7)]  # no voxel of the last class
    sums = class_sums(levels, masks)
    for c, mask in enumerate(masks):
        expected = gather_voxels(levels, mask.flatten().nonzero()[:, 0]).sum(0)
        torch.testing.assert_close(sums[c], expected, rtol=1e-4, atol=1e-4)
    assert not sums.requires_grad


def test_draws_are_uniform_over_the_mask():
    torch.manual_seed(0)
    mask = torch.zeros(2, 1, 10, 10, dtype=torch.bool)
    inside = torch.tensor([0, 3, 57, 100, 198, 199])
    mask.view(-1)[inside] = True
    drawn = draw_voxels(mask, 6000)
    assert set(drawn.tolist()) == set(inside.tolist())
    assert chisquare(torch.bincount(drawn, minlength=200)[inside]).pvalue > 0.001


def test_an_empty_mask_gives_indices_that_exist():
    drawn = draw_voxels(torch.zeros(2, 1, 4, 4, dtype=torch.bool), 10)
    assert ((drawn >= 0) & (drawn < 32)).all()
