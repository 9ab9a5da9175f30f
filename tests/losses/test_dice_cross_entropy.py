"""Against nnU-Net's own losses, with its ignore label where a weight is 0."""

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_crossmatch.losses.dice_cross_entropy import dice_cross_entropy

SHAPE = (3, 4, 6, 7)


def inputs(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*SHAPE, generator=generator, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (3, 1, 6, 7), generator=generator)
    label[0] = 0  # a sample without foreground
    kept = torch.rand(3, 1, 6, 7, generator=generator) < 0.7
    return logits, label, kept


def of_nnunet(batch_dice: bool, ignore: int | None):
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_with_all_weights_1_it_is_nnunets_loss(batch_dice):
    logits, label, _ = inputs()
    mine = dice_cross_entropy(logits, label, torch.ones_like(label), batch_dice=batch_dice)
    theirs = of_nnunet(batch_dice, None)(logits, label)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(*(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (mine, theirs)))


@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_weight_of_0_is_nnunets_ignore_label_but_for_the_cross_entropys_denominator(batch_dice):
    logits, label, kept = inputs()
    mine = dice_cross_entropy(logits, label, kept, batch_dice=batch_dice)
    theirs = of_nnunet(batch_dice, 4)
    marked = label.masked_fill(~kept, 4)
    entropy = theirs.ce(logits, marked[:, 0])
    expected = theirs(logits, marked) - entropy + entropy * kept.double().mean()
    assert mine.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_regions_are_nnunets_binary_loss(batch_dice):
    logits, label, _ = inputs()
    regions = torch.cat([label >= 1, label >= 2, label == 3, label == 1], 1)
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": True, "ddp": False}
    theirs = DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)(logits, regions.double())
    mine = dice_cross_entropy(logits, regions, torch.ones_like(label), batch_dice=batch_dice)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_half_a_weight_is_half_a_voxel():
    """Two copies of a sample, each with half of its weight, are the sample."""
    logits, label, kept = inputs()
    twice = [torch.cat((value, value)) for value in (logits, label)]
    for batch_dice in (True, False):
        half = dice_cross_entropy(*twice, torch.cat((kept, kept)) * 0.5, batch_dice=batch_dice)
        if batch_dice:  # the sums are the same
            whole = dice_cross_entropy(logits, label, kept, batch_dice=True)
            entropy = torch.nn.functional.cross_entropy(logits, label[:, 0], reduction="none")[:, None]
            assert half.item() == pytest.approx((whole - (entropy * kept).mean() / 2).item(), rel=1e-4)
        assert half.isfinite()


def test_nothing_kept_teaches_nothing():
    logits, label, kept = inputs()
    loss = dice_cross_entropy(logits, label, torch.zeros_like(kept), batch_dice=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient == 0).all() and loss.item() == pytest.approx(-1)  # the smoothing term's Dice of nothing
