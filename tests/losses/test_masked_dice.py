import numpy as np
import pytest
import torch

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss

EPS = 1e-5


def slow_dice(probabilities, one_hot, kept):
    """One voxel at a time, as the formula reads."""
    losses = []
    for c in range(probabilities.shape[1]):
        intersection = predicted = true = 0.0
        for index in np.ndindex(probabilities[:, c].shape):
            if kept[(index[0], min(c, kept.shape[1] - 1), *index[1:])]:
                p, y = probabilities[(index[0], c, *index[1:])], one_hot[(index[0], c, *index[1:])]
                intersection, predicted, true = intersection + p * y, predicted + p * p, true + y * y
        losses.append(1 - (2 * intersection + EPS) / (predicted + true + EPS))
    return np.mean(losses)


@pytest.fixture(params=[(2, 3, 4, 5), (2, 3, 3, 4, 2)], ids=["2d", "3d"])
def example(request):
    generator = torch.Generator().manual_seed(0)
    shape = request.param
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 2, (shape[0], 1, *shape[2:]), generator=generator)  # class 2 is absent
    kept = torch.rand(label.shape, generator=generator) > 0.4
    return logits, label, kept


def test_dice_equals_the_formula_voxel_by_voxel(example):
    logits, label, kept = example
    one_hot = torch.zeros_like(logits).scatter_(1, label, 1)
    fast = masked_dice_loss(logits.softmax(1), label, kept, eps=EPS)
    assert fast.item() == pytest.approx(slow_dice(logits.softmax(1).numpy(), one_hot.numpy(), kept.numpy()))


def test_dice_of_regions_masks_and_scores_every_channel_by_itself(example):
    logits, _, _ = example
    generator = torch.Generator().manual_seed(1)
    regions, kept = (torch.rand(logits.shape, generator=generator) > 0.5 for _ in range(2))
    fast = masked_dice_loss(logits.sigmoid(), regions, kept, eps=EPS)
    assert fast.item() == pytest.approx(slow_dice(logits.sigmoid().numpy(), regions.numpy(), kept.numpy()))


def test_the_complement_of_each_region_is_one_more_class(example):
    logits, _, _ = example
    generator = torch.Generator().manual_seed(1)
    p = logits.sigmoid()
    regions, kept = (torch.rand(logits.shape, generator=generator) > 0.5 for _ in range(2))
    regions[:, 1] = False  # nowhere
    regions[:, 2] = True  # everywhere
    found = masked_dice_loss(p, regions, kept, complement=True)
    doubled = [torch.cat(pair, 1).numpy() for pair in ((p, 1 - p), (regions, ~regions), (kept, kept))]
    assert found.item() == pytest.approx(slow_dice(*doubled))
    one_for_all = masked_dice_loss(p, regions, kept[:, :1], complement=True)
    doubled[2] = kept[:, :1].expand(-1, 6, *[-1] * (kept.ndim - 2)).numpy()
    assert one_for_all.item() == pytest.approx(slow_dice(*doubled))


@pytest.mark.parametrize("complement", [True, False])
def test_nothing_kept_costs_nothing_and_gradients_stay_finite(example, complement):
    logits, label, kept = example
    logits = logits.clone().requires_grad_()
    nothing = torch.zeros_like(kept)
    dice = masked_dice_loss(logits.softmax(1), label, nothing, complement=complement)
    dice.backward()
    assert dice.item() == 0
    assert (logits.grad == 0).all()


def test_voxels_that_are_not_kept_get_no_gradient(example):
    logits, label, kept = example
    logits = logits.clone().requires_grad_()
    masked_dice_loss(logits.softmax(1), label, kept).backward()
    inside = kept.expand_as(logits)
    assert (logits.grad[~inside] == 0).all()
    assert (logits.grad[inside] != 0).any()
