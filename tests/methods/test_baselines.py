"""The baselines against their definitions, voxel by voxel where that is the slow and obvious way."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.data import pseudo_label
from nnunetv2_crossmatch.methods import SUPERVISED, bcp, ramp_up
from nnunetv2_crossmatch.methods.bcp import BCP, BCPConstants
from nnunetv2_crossmatch.methods.cps import CPS, CPSConstants
from nnunetv2_crossmatch.methods.fixmatch import FixMatch, FixMatchConstants
from nnunetv2_crossmatch.methods.ict import ICT, ICTConstants
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherConstants
from nnunetv2_crossmatch.methods.uamt import UAMT, UAMTConstants
from nnunetv2_crossmatch.methods.unimatch import UniMatch, UniMatchConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from tests.methods.test_action import SPATIAL, batches, unet

ALL = [
    (MeanTeacher, MeanTeacherConstants(warmup=0.0)),
    (UAMT, UAMTConstants(warmup=0.0, threshold=1.0)),
    (ICT, ICTConstants()),
    (CPS, CPSConstants()),
    (FixMatch, FixMatchConstants(warmup=0.0, threshold=0.4)),
    (UniMatch, UniMatchConstants(warmup=0.0, threshold=0.4)),
    (BCP, BCPConstants()),
]
BY_CLASS = dict(ALL)


def make(cls, network, progress: float = 0.5, regions: bool = False, **changed):
    """With a teacher, or a second network, unlike the network."""
    method = cls(replace(BY_CLASS[cls], **changed), network, regions=regions)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in method.teacher.parameters() if method.has_teacher else ():
            p.add_(0.1 * torch.randn_like(p))
    method.progress = progress
    return method


def step(method, network, unlabeled, labeled) -> dict[str, float]:
    """Weighted gradients, and the sum of each loss."""
    weights, values = {SUPERVISED: 1.0, **method.weights(method.progress)}, {}
    for losses in method.losses(SplitUNet(network), unlabeled, labeled):
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        for name, loss in losses.items():
            values[name] = values.get(name, 0.0) + loss.item()
        losses.clear()
    return values


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def inputs_of(network: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


@torch.no_grad()
def predict(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return network(image)[0].softmax(1)


def mse(a, b, mask) -> float:
    voxels = [(i, y, x) for i, _, y, x in mask.nonzero().tolist()]
    return sum(float((a[i, c, y, x] - b[i, c, y, x]) ** 2) for i, y, x in voxels for c in range(3)) / len(voxels) / 3


def cross_entropy(p, label, kept, counted) -> float:
    return -sum(math.log(p[i, int(label[i, 0, y, x]), y, x]) for i, _, y, x in kept.nonzero().tolist()) / int(
        counted.sum()
    )


def dice(p, label, kept) -> float:
    losses = []
    for c in range(3):
        q, y = p[:, c][kept[:, 0]], (label == c)[:, 0][kept[:, 0]].float()
        losses.append(1 - (2 * (q * y).sum() + 1e-5) / ((q**2).sum() + y.sum() + 1e-5))
    return float(sum(losses)) / 3


@pytest.fixture
def network() -> nn.Module:
    return unet()


@pytest.fixture
def plain_views(monkeypatch) -> list[torch.Tensor]:
    """Strong views that can be told, and the boxes that were pasted into them."""
    boxes = []
    draw = pseudo_label.draw_boxes

    def draw_boxes(*args, **kwargs):
        boxes.append(draw(*args, **kwargs))
        return boxes[-1]

    monkeypatch.setattr(pseudo_label, "draw_boxes", draw_boxes)
    monkeypatch.setattr(bcp, "draw_boxes", draw_boxes)
    monkeypatch.setattr(pseudo_label, "strong_view", lambda image, valid: image.sin())
    return boxes


def test_mean_teacher_agrees_with_what_its_teacher_says_of_a_noisy_view(network):
    method, (unlabeled, labeled) = make(MeanTeacher, network), batches()
    seen = inputs_of(method.teacher.network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    noise = seen[0] - unlabeled.image
    assert 0.19 < noise.abs().max() <= 0.2 + 1e-6 and noise.std().item() == pytest.approx(0.1, rel=0.15)
    target = predict(method.teacher.network, seen[0])
    assert value == pytest.approx(mse(predict(network, unlabeled.image), target, unlabeled.valid), rel=1e-4)
    assert method.weights(0.5) == {"consistency": pytest.approx(0.1 * math.exp(-1.25))}
    assert MeanTeacher(MeanTeacherConstants(), network).weights(0.033)["consistency"] == 0


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_uamt_counts_the_voxels_of_which_eight_passes_are_certain(network, progress):
    method, (unlabeled, labeled) = make(UAMT, network, progress, threshold=0.9), batches()
    seen = inputs_of(method.teacher.network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    assert len(seen) == 9 and not torch.equal(seen[1], seen[2])
    mean = sum(predict(method.teacher.network, image) for image in seen[1:]) / 8
    entropy = -(mean * mean.log()).sum(1, keepdim=True)
    certain = (entropy < (0.9 + 0.1 * ramp_up(progress)) * math.log(3)) & unlabeled.valid
    assert 0 < certain.sum() < unlabeled.valid.sum()
    target = predict(method.teacher.network, seen[0])
    assert value == pytest.approx(mse(predict(network, unlabeled.image), target, certain), rel=1e-4)
    assert method.curves["kept_share"][0] == certain.sum()


def test_ict_mixes_images_and_predictions_alike(network):
    method, (unlabeled, labeled) = make(ICT, network, alpha=1.0), batches()
    unlabeled.valid[1, ..., -3:] = False
    seen = inputs_of(network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    own, other = unlabeled.image, unlabeled.image.flip(0)
    share = ((seen[0] - other) / (own - other)).flatten(1).median(1).values.reshape(-1, 1, 1, 1)
    assert ((share > 0) & (share < 1)).all() and share[0] != share[1]
    torch.testing.assert_close(seen[0], share * own + (1 - share) * other)
    taught = predict(method.teacher.network, own)
    target = share * taught + (1 - share) * taught.flip(0)
    both = unlabeled.valid & unlabeled.valid.flip(0)
    assert value == pytest.approx(mse(predict(network, seen[0]), target, both), rel=1e-3)


def test_cps_each_network_learns_the_others_labels_and_the_second_has_the_supervised_loss_too(network):
    method, (unlabeled, labeled) = make(CPS, network), batches()
    assert not any(map(torch.equal, weights_of(method.second), weights_of(network)))
    p1, p2 = predict(network, unlabeled.image), predict(method.second, unlabeled.image)
    valid, expected = unlabeled.valid, []
    for p, other in ((p2, p1), (p1, p2)):
        expected.append(cross_entropy(p, other.argmax(1, keepdim=True), valid, valid))
    reached = []
    for losses in method.losses(SplitUNet(network), unlabeled, labeled):
        ((name, loss),) = losses.items()
        network.zero_grad(), method.zero_grad()
        loss.backward()
        learns = [any(p.grad is not None for p in m.parameters()) for m in (network, method.second)]
        reached.append((name, pytest.approx(loss.item(), rel=1e-4), learns))
    with torch.no_grad():
        supervised = labeled.loss(method.second(labeled.image)).item()
    assert reached == [
        ("cps", expected[0], [False, True]),
        ("cps", expected[1], [True, False]),
        ("supervised_second", supervised, [False, True]),
    ]
    assert method.weights(1.0) == {"cps": 0.1, "supervised_second": 1.0}


def test_fixmatch_ignores_what_is_not_confident_and_counts_it_in_the_mean(network, plain_views):
    method, (unlabeled, labeled) = make(FixMatch, network, p_cutmix=1.0), batches()
    seen = inputs_of(network)
    confidence, label = predict(network, unlabeled.image).max(1, keepdim=True)
    value = step(method, network, unlabeled, labeled)["strong"]
    box = plain_views[0]
    assert box.any() and not box.all()
    strong = unlabeled.image.sin()

    def mixed(v):
        return torch.where(box, v.flip(0), v)

    assert torch.equal(seen[-1], mixed(strong))
    kept, valid = mixed((confidence >= 0.4) & unlabeled.valid), mixed(unlabeled.valid)
    assert 0 < kept.sum() < valid.sum()
    expected = cross_entropy(predict(network, mixed(strong)), mixed(label), kept, valid)
    assert value == pytest.approx(expected, rel=1e-4)
    assert FixMatch(FixMatchConstants(), network).weights(0.14) == {"strong": 0.0}


def test_unimatch_two_strong_views_and_dropped_features(network, plain_views):
    method, (unlabeled, labeled) = make(UniMatch, network, p_cutmix=1.0, p_drop=0.0), batches()
    confidence, label = predict(network, unlabeled.image).max(1, keepdim=True)
    kept = (confidence >= 0.4) & unlabeled.valid
    values = step(method, network, unlabeled, labeled)
    # nothing is dropped here, so the stream is the plain decoding
    assert values["fp"] == pytest.approx(dice(predict(network, unlabeled.image), label, kept), rel=1e-4)
    assert len(plain_views) == 2 and not torch.equal(*plain_views)
    expected = 0.0
    for box in plain_views:
        image, y, k = (torch.where(box, v.flip(0), v) for v in (unlabeled.image.sin(), label, kept))
        expected += dice(predict(network, image), y, k)
    assert values["strong"] == pytest.approx(expected, rel=1e-4)
    assert method.weights(0.0) == {"strong": 0.25, "fp": 0.5}


def test_unimatch_drops_features_of_the_weak_view(network, monkeypatch):
    method, (unlabeled, labeled) = make(UniMatch, network), batches()
    decoded = []
    decode = SplitUNet.decode
    monkeypatch.setattr(SplitUNet, "decode", lambda self, f: decoded.append([v.detach() for v in f]) or decode(self, f))
    step(method, network, unlabeled, labeled)
    plain, dropped = decoded[:2]
    for a, b in zip(plain, dropped, strict=True):
        gone = (b == 0).flatten(2).all(2)
        assert 0.1 < gone.float().mean() < 0.9
        torch.testing.assert_close(b[~gone], 2 * a[~gone])


def test_bcp_pastes_both_ways_and_cuts_stray_components_off(network, plain_views, monkeypatch):
    method, (unlabeled, labeled) = make(BCP, network), batches()
    shown, seen = [], inputs_of(network)
    monkeypatch.setattr(bcp, "keep_largest_components", lambda label: shown.append(label) or (label + 1) % 3)
    values = step(method, network, unlabeled, labeled)
    taught = predict(method.teacher.network, unlabeled.image).argmax(1, keepdim=True)
    assert torch.equal(shown[0].long(), taught)
    cleaned, box = (taught + 1) % 3, plain_views[0]
    for sample in box[:, 0]:
        extent = sample.nonzero().max(0).values - sample.nonzero().min(0).values + 1
        assert extent.tolist() == [round(2 / 3 * size) for size in SPATIAL]
    expected = {"labeled": 0.0, "unlabeled": 0.0}
    for image, from_labeled in zip(list(seen), (~box, box), strict=True):
        assert torch.equal(image, torch.where(from_labeled, labeled.image, unlabeled.image))
        p = predict(network, image)
        for name, y, valid, part in (
            ("labeled", labeled.label, labeled.valid, from_labeled),
            ("unlabeled", cleaned, unlabeled.valid, ~from_labeled),
        ):
            kept = valid & part
            expected[name] += (dice(p, y, kept) + cross_entropy(p, y, kept, kept)) / 2
    assert values == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    assert method.weights(0.5) == {SUPERVISED: 0.0, "labeled": 1.0, "unlabeled": 0.5}


def test_bcp_begins_with_labelled_pairs(network, plain_views):
    method, (unlabeled, labeled) = make(BCP, network, progress=0.1), batches()
    seen = inputs_of(network)
    values = step(method, network, unlabeled, labeled)
    box = plain_views[0]
    image, y, kept = (torch.where(box, v.flip(0), v) for v in (labeled.image, labeled.label, labeled.valid))
    assert torch.equal(seen[0], image) and len(seen) == 1
    p = predict(network, image)
    assert values == {"labeled": pytest.approx((dice(p, y, kept) + cross_entropy(p, y, kept, kept)) / 2, rel=1e-4)}
    assert method.weights(0.1) == {SUPERVISED: 0.0, "labeled": 1.0}
    assert [start for start, _ in method.stages] == [0.0, 0.15]
    assert [start for start, _ in make(BCP, network, pretrain=0.0).stages] == [0.0]


@pytest.mark.parametrize("cls", BY_CLASS)
@pytest.mark.parametrize("regions", [False, True])
def test_one_sample_regions_and_nothing_valid_give_finite_gradients_and_none_for_a_teacher(network, cls, regions):
    method = make(cls, network, regions=regions)
    for progress, batch, any_valid in ((0.0, 1, True), (0.5, 1, True), (0.9, 3, True), (0.9, 2, False)):
        method.progress = progress
        unlabeled, labeled = batches(batch)
        if regions:
            maps = torch.cat([labeled.label == c for c in range(3)], 1).float()

            def loss(outputs, maps=maps):
                return nn.functional.binary_cross_entropy_with_logits(outputs[0], maps)

            labeled = replace(labeled, label=maps, loss=loss)
        if not any_valid:
            unlabeled.valid[:] = False
        network.zero_grad()
        values = step(method, network, unlabeled, labeled)
        method.after_step(network)
        assert values and all(math.isfinite(value) for value in values.values())
        learning = [*network.parameters(), *(p for p in method.parameters() if p.requires_grad)]
        assert all(p.grad is None or p.grad.isfinite().all() for p in learning)
        if any_valid:
            assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    if method.has_teacher:
        assert all(p.grad is None for p in method.teacher.parameters())
        assert method.teacher.updates == 4


@pytest.mark.parametrize(("cls", "constants"), ALL)
def test_a_constant_out_of_range_is_refused_with_its_value(cls, constants):
    for name in vars(constants):
        with pytest.raises(ValueError, match=f"{name} must be in .*, got -1"):
            replace(constants, **{name: -1})
