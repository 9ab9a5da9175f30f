import numpy as np
import pytest
import torch

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss

EPS = 1e-5


def slow_dice(probabilities, one_hot, kept, present_only):
    """One voxel at a time, as the formula reads."""
    losses = []
    for c in range(probabilities.shape[1]):
        intersection = predicted = true = 0.0
        for index in np.ndindex(probabilities[:, c].shape):
            if kept[(index[0], min(c, kept.shape[1] - 1), *index[1:])]:
                p, y = probabilities[(index[0], c, *index[1:])], one_hot[(index[0], c, *index[1:])]
                intersection, predicted, true = intersection + p * y, predicted + p * p, true + y * y
        if true > 0 or not present_only:
            losses.append(1 - (2 * intersection + EPS) / (predicted + true + EPS))
    return np.mean(losses) if losses else 0.0


@pytest.fixture(params=[(2, 3, 4, 5), (2, 3, 3, 4, 2)], ids=["2d", "3d"])
def example(request):
    generator = torch.Generator().manual_seed(0)
    shape = request.param
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 2, (shape[0], 1, *shape[2:]), generator=generator)  # class 2 is absent
    kept = torch.rand(label.shape, generator=generator) > 0.4
    return logits, label, kept


@pytest.mark.parametrize("present_only", [True, False])
def test_dice_equals_the_formula_voxel_by_voxel(example, present_only):
    logits, label, kept = example
    one_hot = torch.zeros_like(logits).scatter_(1, label, 1)
    fast = masked_dice_loss(logits.softmax(1), label, kept, present_only=present_only, eps=EPS)
    assert fast.item() == pytest.approx(
        slow_dice(logits.softmax(1).numpy(), one_hot.numpy(), kept.numpy(), present_only)
    )


def test_dice_of_regions_masks_and_scores_every_channel_by_itself(example):
    logits, _, _ = example
    generator = torch.Generator().manual_seed(1)
    regions, kept = (torch.rand(logits.shape, generator=generator) > 0.5 for _ in range(2))
    fast = masked_dice_loss(logits.sigmoid(), regions, kept, present_only=True, eps=EPS)
    assert fast.item() == pytest.approx(slow_dice(logits.sigmoid().numpy(), regions.numpy(), kept.numpy(), True))


@pytest.mark.parametrize("present_only", [True, False])
def test_the_complement_of_each_region_is_one_more_class(example, present_only):
    logits, _, _ = example
    generator = torch.Generator().manual_seed(1)
    p = logits.sigmoid()
    regions, kept = (torch.rand(logits.shape, generator=generator) > 0.5 for _ in range(2))
    regions[:, 1] = False  # nowhere
    regions[:, 2] = True  # everywhere
    found = masked_dice_loss(p, regions, kept, present_only=present_only, complement=True)
    doubled = [torch.cat(pair, 1).numpy() for pair in ((p, 1 - p), (regions, ~regions), (kept, kept))]
    assert found.item() == pytest.approx(slow_dice(*doubled, present_only))
    one_for_all = masked_dice_loss(p, regions, kept[:, :1], present_only=present_only, complement=True)
    doubled[2] = kept[:, :1].expand(-1, 6, *[-1] * (kept.ndim - 2)).numpy()
    assert one_for_all.item() == pytest.approx(slow_dice(*doubled, present_only))


@pytest.mark.parametrize("complement", [True, False])
@pytest.mark.parametrize("present_only", [True, False])
def test_nothing_kept_costs_nothing_and_gradients_stay_finite(example, present_only, complement):
    logits, label, kept = example
    logits = logits.clone().requires_grad_()
    nothing = torch.zeros_like(kept)
    dice = masked_dice_loss(logits.softmax(1), label, nothing, present_only=present_only, complement=complement)
    dice.backward()
    assert dice.item() == 0
    assert (logits.grad == 0).all()


def test_voxels_that_are_not_kept_get_no_gradient(example):
    logits, label, kept = example
    logits = logits.clone().requires_grad_()
    masked_dice_loss(logits.softmax(1), label, kept, present_only=False).backward()
    inside = kept.expand_as(logits)
    assert (logits.grad[~inside] == 0).all()
    assert (logits.grad[inside] != 0).any()


def test_an_absent_class_is_pushed_away_only_when_dice_is_over_all_classes(example):
    logits, label, kept = example
    gradients = {}
    for present_only in (True, False):
        p = logits.softmax(1).detach().requires_grad_()
        masked_dice_loss(p, label, kept, present_only=present_only).backward()
        gradients[present_only] = p.grad[:, 2].abs().sum().item()
    assert gradients[True] == 0 < gradients[False]


def test_one_class_alone_counts_as_one(example):
    logits, label, kept = example
    background = torch.zeros_like(label)
    p = logits.softmax(1)
    one_hot = torch.zeros_like(logits).scatter_(1, background, 1)
    found = masked_dice_loss(p, background, kept, present_only=True)
    assert found.item() == pytest.approx(slow_dice(p.numpy(), one_hot.numpy(), kept.numpy(), True))
