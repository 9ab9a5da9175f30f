"""The baselines against their definitions, voxel by voxel where that is the slow and obvious way."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.methods import SUPERVISED, bcp, ramp_up
from nnunetv2_crossmatch.methods.bcp import BCP, BCPConstants
from nnunetv2_crossmatch.methods.cps import CPS, CPSConstants
from nnunetv2_crossmatch.methods.fixmatch import FixMatch, FixMatchConstants
from nnunetv2_crossmatch.methods.ict import ICT, ICTConstants
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherConstants
from nnunetv2_crossmatch.methods.uamt import UAMT, UAMTConstants
from nnunetv2_crossmatch.methods.unimatch import UniMatch, UniMatchConstants
from nnunetv2_crossmatch.networks.ema import EMATeacher
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views import target
from tests.methods.conftest import SPATIAL, batches, step

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
    method = cls(replace(BY_CLASS[cls], **changed), network, patch=SPATIAL, regions=regions)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in method.teacher.parameters() if method.has_teacher else ():
            p.add_(0.1 * torch.randn_like(p))
    method.begin_step(progress)
    return method


def weights_of(network: nn.Module) -> list[torch.Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def inputs_of(network: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    return seen


@torch.no_grad()
def predict(network: nn.Module, image: torch.Tensor, regions: bool = False) -> torch.Tensor:
    logits = network(image)[0]
    return logits.sigmoid() if regions else logits.softmax(1)


def hard(p: torch.Tensor, threshold: float, regions: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Label of every voxel, and where it is confident: one map of classes, or one of each region."""
    if regions:
        return p > 0.5, (p >= threshold) | (p <= 1 - threshold)
    confidence, label = p.max(1, keepdim=True)
    return label, confidence >= threshold


def maps_of(labeled):
    """The labeled batch of a dataset with overlapping regions: classes 1 and 2, class 2, classes 0 and 1."""
    maps = torch.cat([torch.isin(labeled.label, torch.tensor(c)) for c in ((1, 2), (2,), (0, 1))], 1)

    def loss(outputs):
        return nn.functional.binary_cross_entropy_with_logits(outputs[0], maps.float())

    return replace(labeled, label=maps, loss=loss)


def inputs(regions: bool, batch: int = 2):
    unlabeled, labeled = batches(batch)
    return unlabeled, maps_of(labeled) if regions else labeled


def mse(a, b, mask) -> float:
    values = [float((a[tuple(v)] - b[tuple(v)]) ** 2) for v in mask.expand_as(a).nonzero().tolist()]
    return sum(values) / len(values)


def cross_entropy(p, label, kept, counted) -> float:
    if label.shape == p.shape:
        kept, counted = kept.expand_as(p), counted.expand_as(p)
        total = sum(math.log(p[tuple(v)] if label[tuple(v)] else 1 - p[tuple(v)]) for v in kept.nonzero().tolist())
    else:
        total = sum(math.log(p[i, int(label[i, 0, y, x]), y, x]) for i, _, y, x in kept.nonzero().tolist())
    return -total / int(counted.sum())


def dice(p, label, kept) -> float:
    losses = []
    for c in range(3):
        mask = kept[:, c % kept.shape[1]]
        q, y = p[:, c][mask], (label[:, c] if label.shape == p.shape else (label == c)[:, 0])[mask].float()
        losses.append(1 - (2 * (q * y).sum() + 1e-5) / ((q**2).sum() + y.sum() + 1e-5))
    return float(sum(losses)) / 3


@pytest.fixture
def plain_views(monkeypatch) -> list[torch.Tensor]:
    """Strong views that can be told, and the boxes that were pasted into them."""
    boxes = []
    draw = target.draw_boxes

    def draw_boxes(*args, **kwargs):
        boxes.append(draw(*args, **kwargs))
        return boxes[-1]

    monkeypatch.setattr(target, "draw_boxes", draw_boxes)
    monkeypatch.setattr(bcp, "draw_boxes", draw_boxes)
    monkeypatch.setattr(target, "strong_view", lambda image, valid: image.sin())
    return boxes


@pytest.mark.parametrize("regions", [False, True])
def test_mean_teacher_agrees_with_what_its_teacher_says_of_a_noisy_view(network, regions):
    method, (unlabeled, labeled) = make(MeanTeacher, network, regions=regions), inputs(regions)
    seen = inputs_of(method.teacher.network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    noise = seen[0] - unlabeled.image
    assert 0.19 < noise.abs().max() <= 0.2 + 1e-6 and noise.std().item() == pytest.approx(0.1, rel=0.15)
    target = predict(method.teacher.network, seen[0], regions)
    expected = mse(predict(network, unlabeled.image, regions), target, unlabeled.valid)
    assert value == pytest.approx(expected, rel=1e-4)
    assert method.weights(0.5) == {"consistency": pytest.approx(0.1 * math.exp(-1.25))}
    assert MeanTeacher(MeanTeacherConstants(), network, patch=SPATIAL).weights(0.033)["consistency"] == 0


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_uamt_counts_the_voxels_of_which_eight_passes_are_certain(network, progress, regions):
    method, (unlabeled, labeled) = make(UAMT, network, progress, regions, threshold=0.9), inputs(regions)
    seen = inputs_of(method.teacher.network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    assert len(seen) == 9 and not torch.equal(seen[1], seen[2])
    mean = sum(predict(method.teacher.network, image, regions) for image in seen[1:]) / 8
    if regions:
        entropy, largest = -(mean * mean.log() + (1 - mean) * (1 - mean).log()), math.log(2)
    else:
        entropy, largest = -(mean * mean.log()).sum(1, keepdim=True), math.log(3)
    certain = (entropy < (0.9 + 0.1 * ramp_up(progress)) * largest) & unlabeled.valid
    assert 0 < certain.sum() < unlabeled.valid.expand_as(certain).sum()
    target = predict(method.teacher.network, seen[0], regions)
    assert value == pytest.approx(mse(predict(network, unlabeled.image, regions), target, certain), rel=1e-4)
    assert method.curves["kept_share"][0] == certain.sum()


@pytest.mark.parametrize("regions", [False, True])
def test_ict_mixes_images_and_predictions_alike(network, regions):
    method, (unlabeled, labeled) = make(ICT, network, regions=regions, alpha=1.0), inputs(regions)
    unlabeled.valid[1, ..., -3:] = False
    seen = inputs_of(network)
    value = step(method, network, unlabeled, labeled)["consistency"]
    own, other = unlabeled.image, unlabeled.image.flip(0)
    share = ((seen[0] - other) / (own - other)).flatten(1).median(1).values.reshape(-1, 1, 1, 1)
    assert ((share > 0) & (share < 1)).all() and share[0] != share[1]
    torch.testing.assert_close(seen[0], share * own + (1 - share) * other)
    taught = predict(method.teacher.network, own, regions)
    target = share * taught + (1 - share) * taught.flip(0)
    both = unlabeled.valid & unlabeled.valid.flip(0)
    assert value == pytest.approx(mse(predict(network, seen[0], regions), target, both), rel=1e-3)


def test_ict_draws_shares_from_its_beta(network):
    method, (unlabeled, labeled) = make(ICT, network, alpha=0.2), batches(batch=200)
    seen = inputs_of(network)
    next(iter(method.losses(SplitUNet(network), unlabeled, labeled)))
    own, other = unlabeled.image, method.partner.of("image", unlabeled.image)
    share = ((seen[0] - other) / (own - other)).flatten(1).median(1).values
    assert share.mean().item() == pytest.approx(0.5, abs=0.1)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.15)


@pytest.mark.parametrize("regions", [False, True])
def test_cps_each_network_learns_the_others_labels_and_the_second_has_the_supervised_loss_too(network, regions):
    method, (unlabeled, labeled) = make(CPS, network, regions=regions), inputs(regions)
    assert not any(map(torch.equal, weights_of(method.second), weights_of(network)))
    p1, p2 = (predict(net, unlabeled.image, regions) for net in (network, method.second))
    valid, expected = unlabeled.valid, []
    for p, other in ((p2, p1), (p1, p2)):
        expected.append(cross_entropy(p, hard(other, 0.0, regions)[0], valid, valid))
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


@pytest.mark.parametrize("regions", [False, True])
def test_fixmatch_ignores_what_is_not_confident_and_counts_it_in_the_mean(network, plain_views, regions):
    threshold = 0.6 if regions else 0.4
    method = make(FixMatch, network, regions=regions, p_cutmix=1.0, threshold=threshold)
    unlabeled, labeled = inputs(regions)
    seen = inputs_of(network)
    label, confident = hard(predict(network, unlabeled.image, regions), threshold, regions)
    value = step(method, network, unlabeled, labeled)["strong"]
    box = plain_views[0]
    assert box.any() and not box.all()
    strong = unlabeled.image.sin()

    def mixed(v):
        return torch.where(box, v.flip(0), v)

    assert torch.equal(seen[-1], mixed(strong))
    kept, valid = mixed(confident & unlabeled.valid), mixed(unlabeled.valid)
    assert 0 < kept.sum() < valid.expand_as(kept).sum()
    p = predict(network, mixed(strong), regions)
    expected = cross_entropy(p, mixed(label), kept, valid)
    agreed = (hard(p, 0.0, regions)[0] == mixed(label)) & valid
    assert [int(v) for v in method.curves["agreement_strong_view"]] == [agreed.sum(), valid.expand_as(agreed).sum()]
    assert value == pytest.approx(expected, rel=1e-4)
    assert FixMatch(FixMatchConstants(), network, patch=SPATIAL).weights(0.14) == {"strong": 0.0}


@pytest.mark.parametrize("regions", [False, True])
def test_unimatch_two_strong_views_and_dropped_features(network, plain_views, regions):
    threshold = 0.6 if regions else 0.4
    method = make(UniMatch, network, regions=regions, p_cutmix=1.0, p_drop=0.0, threshold=threshold)
    unlabeled, labeled = inputs(regions)
    label, confident = hard(predict(network, unlabeled.image, regions), threshold, regions)
    kept = confident & unlabeled.valid
    values = step(method, network, unlabeled, labeled)
    # nothing is dropped here, so the stream is the plain decoding
    assert values["fp"] == pytest.approx(dice(predict(network, unlabeled.image, regions), label, kept), rel=1e-4)
    assert len(plain_views) == 2 and not torch.equal(*plain_views)
    expected = 0.0
    for box in plain_views:
        image, y, k = (torch.where(box, v.flip(0), v) for v in (unlabeled.image.sin(), label, kept))
        expected += dice(predict(network, image, regions), y, k)
    assert values["strong"] == pytest.approx(expected, rel=1e-4)
    assert method.weights(0.0) == {"strong": 0.25, "fp": 0.5}
    assert UniMatch(UniMatchConstants(), network, patch=SPATIAL).weights(0.14) == {"strong": 0.0, "fp": 0.0}


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


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_bcp_pastes_both_ways_and_cuts_stray_components_off(network, plain_views, monkeypatch, regions, batch):
    method, (unlabeled, labeled) = make(BCP, network, regions=regions), inputs(regions, batch)
    shown, seen = [], inputs_of(network)
    monkeypatch.setattr(bcp, "keep_largest_components", lambda label: shown.append(label) or clean(label))

    def clean(label):
        return ~label if regions else (label + 1) % 3

    values = step(method, network, unlabeled, labeled)
    taught = hard(predict(method.teacher.network, unlabeled.image, regions), 0.0, regions)[0]
    assert torch.equal(shown[0].to(taught.dtype), taught)
    box = plain_views[0]
    for sample in box[:, 0]:
        extent = sample.nonzero().max(0).values - sample.nonzero().min(0).values + 1
        assert extent.tolist() == [round(2 / 3 * size) for size in SPATIAL]
    ways = [~box, box] if batch == 1 else [torch.stack([~box[0], box[1], ~box[2]])]
    expected = {"labeled": 0.0, "unlabeled": 0.0}
    for image, from_labeled in zip(list(seen), ways, strict=True):
        assert torch.equal(image, torch.where(from_labeled, labeled.image, unlabeled.image))
        p = predict(network, image, regions)
        for name, y, valid, part in (
            ("labeled", labeled.label, labeled.valid, from_labeled),
            ("unlabeled", clean(taught), unlabeled.valid, ~from_labeled),
        ):
            kept = valid & part
            expected[name] += (dice(p, y, kept) + cross_entropy(p, y, kept, kept)) / len(ways)
    assert values == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
    assert method.weights(0.5) == {SUPERVISED: 0.0, "labeled": 1.0, "unlabeled": 0.5}


def test_bcp_begins_with_labeled_pairs(network, plain_views):
    method, (unlabeled, labeled) = make(BCP, network, progress=0.1), batches()
    seen = inputs_of(network)
    values = step(method, network, unlabeled, labeled)
    box = plain_views[0]
    image, y, kept = (torch.where(box, v.flip(0), v) for v in (labeled.image, labeled.label, labeled.valid))
    assert torch.equal(seen[0], image) and len(seen) == 1
    p = predict(network, image)
    assert values == {"labeled": pytest.approx(dice(p, y, kept) + cross_entropy(p, y, kept, kept), rel=1e-4)}
    assert method.weights(0.1) == {SUPERVISED: 0.0, "labeled": 1.0}
    assert [start for start, _ in method.stages] == [0.0, 0.25]
    assert [start for start, _ in make(BCP, network, pretrain=0.0).stages] == [0.0]


@pytest.mark.parametrize("cls", BY_CLASS)
@pytest.mark.parametrize("regions", [False, True])
def test_one_sample_and_nothing_valid_give_finite_gradients_and_none_for_a_teacher(network, cls, regions):
    method = make(cls, network, regions=regions)
    for progress, batch, any_valid in ((0.0, 1, True), (0.5, 1, True), (0.9, 3, True), (0.9, 2, False)):
        method.begin_step(progress)
        unlabeled, labeled = inputs(regions, batch)
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


ABOVE_1 = ("warmup", "ema_decay", "threshold", "p_cutmix", "p_drop", "edge", "pretrain")


@pytest.mark.parametrize(("cls", "constants"), ALL)
def test_a_constant_out_of_range_is_refused_with_its_value(cls, constants):
    for name in vars(constants):
        for value in (-1, 1.5) if name in ABOVE_1 else (-1,):
            with pytest.raises(ValueError, match=f"{name} must be in .*, got {value}"):
                replace(constants, **{name: value})


def test_the_constants_are_the_published_ones():
    """The table of the methods' own repositories and SSL4MIS."""
    assert vars(MeanTeacherConstants()) == {"weight": 0.1, "warmup": 1 / 30, "ema_decay": 0.99, "noise": 0.1}
    uamt = {"weight": 0.1, "warmup": 0.0, "ema_decay": 0.99, "noise": 0.1, "passes": 8, "threshold": 0.75}
    assert vars(UAMTConstants()) == uamt
    assert vars(ICTConstants()) == {"weight": 0.1, "ema_decay": 0.99, "alpha": 0.2}
    assert vars(CPSConstants()) == {"weight": 0.1}
    assert vars(FixMatchConstants()) == {"weight": 1.0, "threshold": 0.95, "p_cutmix": 0.5, "warmup": 0.15}
    unimatch = {"lambda_strong": 0.25, "lambda_fp": 0.5, "threshold": 0.95, "p_drop": 0.5, "p_cutmix": 0.5}
    assert vars(UniMatchConstants()) == {**unimatch, "warmup": 0.15}
    assert vars(BCPConstants()) == {"weight": 0.5, "edge": 2 / 3, "pretrain": 0.25, "ema_decay": 0.99}


def test_a_single_sample_gets_the_previous_steps_view_in_its_box(network, plain_views):
    """And of two views of a step each its own."""
    method, seen = make(UniMatch, network, p_cutmix=1.0), []
    spied = []
    decode = SplitUNet.logits
    views = []
    for seed in (1, 2):
        unlabeled, labeled = batches(batch=1, seed=seed)
        seen.append(unlabeled.image.sin())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SplitUNet, "logits", lambda self, image: spied.append(image) or decode(self, image))
            number = iter((1.0, 2.0))
            patch.setattr(target, "strong_view", lambda image, valid, n=number: image.sin() * next(n))
            step(method, network, unlabeled, labeled)
        views.append(spied[-2:])
    for n in (0, 1):
        box = plain_views[2 + n]
        assert torch.equal(views[1][n], torch.where(box, (n + 1) * seen[0], (n + 1) * seen[1]))


class Own(FixMatch):
    """Names nnU-Net's loss among its weights, and has a teacher whose average changes with the training."""

    def __init__(self, constants, student, **options):
        super().__init__(constants, student, **options)
        self.has_teacher, self.teacher = True, EMATeacher(student)

    def weights_after_warmup(self, progress):
        return {SUPERVISED: 1.0, **super().weights_after_warmup(progress)}

    def ema_decay(self, progress):
        return progress


def test_the_warm_up_leaves_nnunets_own_loss_alone(network):
    method = Own(FixMatchConstants(warmup=0.5), network, patch=SPATIAL)
    assert not any(method.weights(0.4).values()) and method.weights(0.4).get(SUPERVISED, 1.0) == 1.0
    assert method.weights(0.5) == {SUPERVISED: 1.0, "strong": 1.0}


def test_the_average_has_the_decay_of_the_moment(network):
    method = Own(FixMatchConstants(), network, patch=SPATIAL)
    expected, weight = None, weights_of(network)[0]
    for progress in (0.0, 0.25, 0.6):
        with torch.no_grad():
            weight.add_(1.0)
        method.begin_step(progress)
        method.after_step(network)
        expected = weight.clone() if expected is None else progress * expected + (1 - progress) * weight
    torch.testing.assert_close(weights_of(method.teacher.network)[0], expected)


def test_a_step_begins_without_the_curves_of_the_one_before(network):
    method, (unlabeled, labeled) = make(FixMatch, network), batches()
    method.curves["of another step"] = (torch.ones(()), torch.ones(()))
    method.begin_step(0.5)
    step(method, network, unlabeled, labeled)
    assert method.curves.keys() == {"kept_share", "agreement_strong_view"}
