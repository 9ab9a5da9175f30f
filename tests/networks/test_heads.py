import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.networks.heads import GlobalHead, VoxelHead, WindowHead


def test_the_global_embedding_averages_the_valid_part_only():
    head, bottleneck = GlobalHead(3, 5), torch.randn(1, 3, 2, 2)
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    valid[..., 4:] = False
    torch.testing.assert_close(head(bottleneck, valid), head(bottleneck[..., :1], valid[..., :4]))
    assert head(bottleneck, torch.zeros_like(valid)).isfinite().all()


@pytest.mark.parametrize(
    ("spatial", "cell", "cells", "starts"),
    [((128, 96), 8, 8, (3, 2)), ((40, 30, 20), 5, 4, (3, 2, 1)), ((4, 12), 8, 8, (1, 2))],
    ids=str,
)
def test_windows_equal_cutting_and_pooling_one_after_the_other(spatial, cell, cells, starts):
    torch.manual_seed(0)
    head = WindowHead(2, spatial, cell, cells)
    logits, valid = torch.randn(2, 2, *spatial), torch.rand(2, 1, *spatial) > 0.2
    vectors, share = head(logits, valid)
    n = torch.tensor(starts).prod()
    assert vectors.shape == (2, n, head.channels) and share.shape == (2, n)
    sizes = [c * e for c, e in zip(head.cells, head.cell, strict=True)]
    pool = nn.AvgPool2d(head.cell) if len(spatial) == 2 else nn.AvgPool3d(head.cell)
    places = torch.cartesian_prod(*(torch.arange(s) for s in starts)).tolist()
    for w, place in enumerate(places):
        where = [
            slice(p * (c // 2) * e, p * (c // 2) * e + s)
            for p, c, e, s in zip(place, head.cells, head.cell, sizes, strict=True)
        ]
        window, counted = logits[(..., *where)], valid[(..., *where)].float()
        cells_of = pool(window * counted) / pool(counted).clamp(min=1e-6)
        expected = head.convolve(cells_of.movedim(1, -1)).movedim(-1, 1).flatten(1)
        torch.testing.assert_close(vectors[:, w], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(share[:, w], counted.flatten(1).mean(1))


def test_a_windows_voxels_without_a_valid_one_are_harmless():
    vectors, share = WindowHead(2, (16, 16), 8, 8)(torch.randn(1, 2, 16, 16), torch.zeros(1, 1, 16, 16).bool())
    assert vectors.isfinite().all() and not share.any()


def test_the_voxel_head_is_linear():
    head, features = VoxelHead(7, 5), torch.randn(20, 7)
    torch.testing.assert_close(head(features).mean(0), head(features.mean(0)), rtol=1e-4, atol=1e-5)
