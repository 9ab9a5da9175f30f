import math

import pytest
import torch

from nnunetv2_crossmatch.losses.masked_cross_entropy import masked_cross_entropy
from nnunetv2_crossmatch.losses.masked_mse import masked_mse

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 3, 4, 5, generator=GENERATOR, dtype=torch.float64)
LABEL = torch.randint(0, 3, (2, 1, 4, 5), generator=GENERATOR)
KEPT = torch.rand(2, 1, 4, 5, generator=GENERATOR) < 0.4


def test_cross_entropy_is_a_sum_over_kept_voxels_over_those_counted():
    p = LOGITS.softmax(1)
    total = -sum(math.log(p[i, LABEL[i, 0, y, x], y, x]) for i, _, y, x in KEPT.nonzero().tolist())
    assert masked_cross_entropy(LOGITS, LABEL, KEPT, KEPT).item() == pytest.approx(total / KEPT.sum().item())
    everything = torch.ones_like(KEPT)
    assert masked_cross_entropy(LOGITS, LABEL, KEPT, everything).item() == pytest.approx(total / 40)


def test_cross_entropy_of_regions_is_binary_per_region():
    maps = torch.rand(LOGITS.shape, generator=GENERATOR) < 0.5
    kept = torch.rand(LOGITS.shape, generator=GENERATOR) < 0.5
    p = LOGITS.sigmoid()
    total = -sum(math.log(p[tuple(v)] if maps[tuple(v)] else 1 - p[tuple(v)]) for v in kept.nonzero().tolist())
    assert masked_cross_entropy(LOGITS, maps, kept, kept).item() == pytest.approx(total / kept.sum().item())
    assert masked_cross_entropy(LOGITS, maps, KEPT, KEPT).isfinite()


def test_mse_is_the_mean_over_kept_voxels_and_classes():
    target = torch.rand(LOGITS.shape, generator=GENERATOR, dtype=torch.float64)
    voxels = KEPT.nonzero().tolist()
    total = sum(float((LOGITS[i, c, y, x] - target[i, c, y, x]) ** 2) for i, _, y, x in voxels for c in range(3))
    assert masked_mse(LOGITS, target, KEPT).item() == pytest.approx(total / KEPT.sum().item() / 3)


def cross_entropy_of_kept(logits, target, kept):
    return masked_cross_entropy(logits, LABEL, kept, kept)


@pytest.mark.parametrize("loss", [cross_entropy_of_kept, masked_mse])
def test_nothing_kept_is_0_with_finite_gradients_and_no_gradient_goes_where_nothing_is_kept(loss):
    for kept in (torch.zeros_like(KEPT), KEPT):
        logits, target = LOGITS.clone().requires_grad_(), torch.zeros_like(LOGITS).requires_grad_()
        value = loss(logits, target, kept)
        value.backward()
        assert (value == 0) == (not kept.any())
        assert torch.equal(logits.grad.any(1, keepdim=True), kept)
        assert target.grad is None


def test_one_voxel_counts_as_one():
    one = torch.zeros_like(KEPT)
    one[0, 0, 1, 2] = True
    expected = -LOGITS.log_softmax(1)[0, LABEL[0, 0, 1, 2], 1, 2]
    assert masked_cross_entropy(LOGITS, LABEL, one, one).item() == pytest.approx(expected.item())
    region = one & torch.tensor([True, False, False])[:, None, None]
    assert masked_mse(LOGITS, torch.zeros_like(LOGITS), region).item() == pytest.approx(LOGITS[0, 0, 1, 2].item() ** 2)
