"""The default against a slow version: nnU-Net's own loss of the joint batch, where nothing is doubtful."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_crossmatch.methods import SUPERVISED, crossmatch
from nnunetv2_crossmatch.methods.crossmatch import CrossMatch, CrossMatchConstants, Stream
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from tests.methods.conftest import SPATIAL, batches, step

PLAIN = CrossMatchConstants(threshold=0.0, ramp=0.0, p_cutmix=0.0)


def make(network, constants=PLAIN, **plan) -> CrossMatch:
    method = CrossMatch(constants, network, patch=SPATIAL, **plan)
    torch.manual_seed(3)
    with torch.no_grad():  # a teacher and a student that differ
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    method.started = 0.0
    method.begin_step(0.5)
    return method


@pytest.fixture
def views(monkeypatch):
    """A strong view that can be told."""
    monkeypatch.setattr(CrossMatch, "strong_view", lambda self, unlabeled: unlabeled.image.sin())


@pytest.mark.parametrize("batch_dice", [True, False])
def test_it_is_nnunets_loss_of_both_halves_at_once(network, views, batch_dice):
    method, (unlabeled, labeled) = make(network, batch_dice=batch_dice), batches()
    values = step(method, network, unlabeled, labeled)
    with torch.no_grad():
        taught = method.teacher.network(unlabeled.image)[0].argmax(1, keepdim=True)
        taught[~unlabeled.valid] = 3  # as nnU-Net's ignore label
        outputs = network(torch.cat((labeled.image, unlabeled.image.sin())))
    target = torch.cat((labeled.label, taught))
    targets = [target, torch.nn.functional.interpolate(target.float(), outputs[1].shape[2:], mode="nearest-exact")]
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    of_level = DC_and_CE_loss(dice, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)

    def with_all_voxels_counted(logits, target):
        """Those that nobody annotated are no voxels, those that are doubtful are."""
        kept, annotated = (target != 3).float(), (target[: len(target) // 2] != 3).float()
        counted = annotated.sum() + annotated.numel()
        entropy = of_level.ce(logits, target[:, 0].long())
        return of_level(logits, target.long()) - entropy + entropy * kept.sum() / counted

    loss = DeepSupervisionWrapper(with_all_voxels_counted, [1.0, 0.0])  # nnU-Net has 0 for the coarsest
    assert list(values) == ["joint"]
    assert values["joint"] == pytest.approx(loss(outputs, targets).item(), rel=1e-4)
    assert all(p.grad is None for p in method.teacher.parameters())


def test_a_doubtful_voxel_and_one_of_a_class_that_is_not_taught_yet_teach_nothing(network, views):
    method, (unlabeled, labeled) = make(network, replace(PLAIN, threshold=0.5)), batches()
    method.taught = torch.tensor([True, False, True])
    seen = []
    method.partner.draw = lambda batch: seen.append(method.curves["kept_share"])
    p = method.teacher.network(unlabeled.image)[0].softmax(1)
    confident, label = p.max(1, keepdim=True)
    background_for_sure = (label == 2) | (p[:, 1:2] <= 0.01)
    kept = (confident >= 0.5) & unlabeled.valid & (label != 1) & background_for_sure
    step(method, network, unlabeled, labeled)
    kept_of_class, valid_of_class = seen[0]
    assert kept_of_class.tolist() == [int((kept & (label == c)).sum()) for c in range(3)]
    assert valid_of_class.tolist() == [int((unlabeled.valid & (label == c)).sum()) for c in range(3)]
    assert kept_of_class[1] == 0 and kept_of_class[2] > 0


def test_the_ramp_rises_from_where_self_training_began(network, views):
    """At its beginning the unlabeled half teaches nothing: its gradient is that of the labeled half alone."""
    method = make(network, replace(PLAIN, ramp=0.2))
    method.started = 0.4
    for progress, weight in ((0.4, 0.0), (0.5, 0.5), (0.6, 1.0), (0.9, 1.0)):
        method.begin_step(progress)
        assert method._ramp() == pytest.approx(weight)
    unlabeled, labeled = batches()
    method.begin_step(0.4)
    other = replace(unlabeled, image=unlabeled.image.flip(0) * 2)
    values = [step(method, network, batch, labeled)["joint"] for batch in (unlabeled, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_it_waits_and_then_takes_nnunets_place(network):
    method = make(network)
    assert method.weights(0.5) == {SUPERVISED: 0.0, "joint": 1.0}
    method.started = None
    assert method.weights(0.5) == {"joint": 0.0}
    for nothing in ({"weight": 0.0}, {"lambda_ip": 0.0, "lambda_kd": 0.0}):
        assert not any(make(network, replace(PLAIN, **nothing)).weights(0.5).values())


def test_streams_are_drawn_with_the_papers_weights(network, views, monkeypatch):
    constants = replace(PLAIN, lambda_ip=1.0, lambda_kd=2.0, eta=0.3)
    method, (unlabeled, labeled) = make(network, constants), batches()
    shares = method.streams()
    assert sum(shares.values()) == pytest.approx(1)
    expected = {"ip": 1 / 3, "tkd": 0.7 * 2 / 3, "dkd": 0.3 * 2 / 3}
    for loss, share in expected.items():
        assert sum(p for stream, p in shares.items() if stream.loss == loss) == pytest.approx(share)
    assert {(s.view, s.dropout) for s in shares if s.loss == "tkd"} == {
        (view, p) for view in ("weak", "strong") for p in (0.25, 0.75)
    }
    assert all(s.view == "strong" and s.taught_through == s.dropout for s in shares if s.loss == "dkd")
    drawn = Counter()
    monkeypatch.setattr(crossmatch, "drop_channels", lambda features, masks: drawn.update(["drop"]) or features)
    for _ in range(300):
        for losses in method.losses(SplitUNet(network), unlabeled, labeled):
            losses.clear()
    # once for the student of L_tkd, twice for L_dkd, whose label is dropped from, too
    assert drawn.total() == pytest.approx(300 * (expected["tkd"] + 2 * expected["dkd"]), abs=40)


@pytest.mark.parametrize("p", [0.25, 0.75])
def test_dropout_reaches_the_unlabeled_half_alone_and_as_many_maps_as_it_says(network, views, monkeypatch, p):
    method, (unlabeled, labeled) = make(network), batches(batch=8)
    monkeypatch.setattr(method, "streams", lambda: {Stream("tkd", "strong", p): 1.0})
    seen = []
    original = crossmatch.drop_channels
    monkeypatch.setattr(crossmatch, "drop_channels", lambda f, masks: seen.append(masks) or original(f, masks))
    step(method, network, unlabeled, labeled)
    (masks,) = seen
    assert len(masks) == 3 and all((mask[:8] == 1).all() for mask in masks)
    dropped = torch.cat([mask[8:].flatten() for mask in masks]) == 0
    assert dropped.float().mean().item() == pytest.approx(p, abs=0.1)
    assert method.curves.keys() == {"kept_share", "agreement_strong_view_dropout"}


def test_the_label_goes_through_the_same_share_of_dropout_in_dkd(network, views, monkeypatch):
    method, (unlabeled, labeled) = make(network), batches()
    monkeypatch.setattr(method, "streams", lambda: {Stream("dkd", "strong", 0.75, 0.75): 1.0})
    shares = []
    original = crossmatch.draw_channel_masks
    monkeypatch.setattr(crossmatch, "draw_channel_masks", lambda f, p: shares.append(p) or original(f, p))
    step(method, network, unlabeled, labeled)
    assert shares == [0.75, 0.75]


@pytest.mark.parametrize("labeled_count", [1, 2])
def test_regions_and_batches_of_any_size(network, labeled_count):
    constants = replace(PLAIN, p_cutmix=1.0, lambda_kd=1.0)
    method = make(network, constants, regions=True)
    unlabeled, labeled = batches(batch=3)
    regions = torch.cat([labeled.label == 1, labeled.label >= 1, labeled.label == 2], 1).float()
    labeled = replace(
        labeled, image=labeled.image[:labeled_count], label=regions[:labeled_count], valid=labeled.valid[:labeled_count]
    )
    for _ in range(6):
        assert torch.isfinite(torch.tensor(step(method, network, unlabeled, labeled)["joint"]))


@pytest.mark.parametrize(
    "changed", [{"threshold": 1.2}, {"weight": 1.5}, {"ramp": 1.0}, {"lambda_ip": -1.0}, {"ema_decay": 1.0}], ids=str
)
def test_constants_that_cannot_be_are_refused(changed):
    with pytest.raises(ValueError, match=next(iter(changed))):
        CrossMatchConstants(**changed)
