"""The baselines against their definitions, voxel by voxel where that is the slow and obvious way."""

import math
from dataclasses import replace

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import nn

from nnunetv2_crossmatch.methods import SUPERVISED, Method, bcp, ramp_up
from nnunetv2_crossmatch.methods.bcp import BCP, BCPConstants
from nnunetv2_crossmatch.methods.cps import CPS, CPSConstants
from nnunetv2_crossmatch.methods.crossmatch import CrossMatchConstants
from nnunetv2_crossmatch.methods.crossmatch_paper import CrossMatchPaper, CrossMatchPaperConstants
from nnunetv2_crossmatch.methods.fixmatch import FixMatch, FixMatchConstants
from nnunetv2_crossmatch.methods.ict import ICT, ICTConstants
from nnunetv2_crossmatch.methods.mean_teacher import MeanTeacher, MeanTeacherConstants
from nnunetv2_crossmatch.methods.uamt import UAMT, UAMTConstants
from nnunetv2_crossmatch.methods.unimatch import UniMatch, UniMatchConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views import target
from nnunetv2_crossmatch.views.strong_view import STRONG_VIEW
from tests.methods.conftest import SPATIAL, batches, step

ALL = [
    (MeanTeacher, MeanTeacherConstants(warmup=0.0)),
    (UAMT, UAMTConstants(warmup=0.0, threshold=1.0)),
    (ICT, ICTConstants()),
    (CPS, CPSConstants()),
    (FixMatch, FixMatchConstants(threshold=0.4)),
    (UniMatch, UniMatchConstants(threshold=0.4)),
    (BCP, BCPConstants()),
]
BY_CLASS = dict(ALL)


def make(cls, network, progress: float = 0.5, regions: bool = False, **changed):
    """With a teacher, or a second network, unlike the network."""
    method = cls(replace(BY_CLASS[cls], **changed), network, patch=SPATIAL, regions=regions)
    method.started = 0.0  # of one that waits
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


def dice(p, label, kept, eps=1e-5, complement=False) -> float:
    losses = []
    for c in range(3):
        mask = kept[:, c % kept.shape[1]]
        q, y = p[:, c][mask], (label[:, c] if label.shape == p.shape else (label == c)[:, 0])[mask].float()
        pairs = ((q, y), (1 - q, 1 - y)) if complement else ((q, y),)
        losses += [1 - (2 * (a * b).sum() + eps) / ((a**2).sum() + b.sum() + eps) for a, b in pairs]
    return float(sum(losses)) / len(losses)


def coarser(values: torch.Tensor, step: int) -> torch.Tensor:
    """As nnU-Net's own transform makes them for a coarser output."""
    transform = DownsampleSegForDSTransform([1 / step])
    return torch.stack([transform(segmentation=sample)["segmentation"][0] for sample in values])


@torch.no_grad()
def of_levels(network: nn.Module, image, label, kept, regions: bool = False) -> float:
    """BCP's loss: 2/3 of the finest output's Dice + cross entropy and 1/3 of the next one's."""
    total = 0.0
    for level, logits in enumerate(network(image)[:2]):
        p = logits.sigmoid() if regions else logits.softmax(1)
        y, k = (coarser(values, 2**level) for values in (label, kept))
        total += (2 - level) / 3 * (dice(p, y, k, eps=1e-10) + cross_entropy(p, y, k, k))
    return total


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
    monkeypatch.setattr(Method, "strong_view", lambda self, unlabeled: unlabeled.image.sin())
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
    assert method.weights(0.5) == {"consistency": pytest.approx(0.2 * math.exp(-1.25))}
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
    expected = mse(predict(network, unlabeled.image, regions), target, certain)
    assert value == pytest.approx(expected if regions else 3 / 2 * expected, rel=1e-4)  # sum over classes, halved
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


@pytest.mark.parametrize("cls", [MeanTeacher, UAMT, ICT, CPS])
def test_the_fields_ramp_is_over_the_whole_training(network, cls):
    name = "cps" if cls is CPS else "consistency"
    for progress in (0.0, 0.5, 1.0):
        expected = 0.2 * math.exp(-5 * (1 - progress) ** 2)
        assert make(cls, network).weights(progress)[name] == pytest.approx(expected)


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
    assert method.weights(1.0) == {"cps": 0.2, "supervised_second": 1.0}


@pytest.mark.parametrize("regions", [False, True])
def test_fixmatch_ignores_what_is_not_confident_and_counts_it_in_the_mean(network, plain_views, regions):
    threshold = 0.6 if regions else 0.4
    method = make(FixMatch, network, regions=regions, p_cutmix=1.0, threshold=threshold)
    unlabeled, labeled = inputs(regions)
    seen = inputs_of(network)
    label, confident = hard(predict(method.teacher.network, unlabeled.image, regions), threshold, regions)
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
    predicted = label if regions else torch.cat([label == c for c in range(3)], 1)
    assert method.curves["kept_share"][1].tolist() == (predicted & unlabeled.valid).sum((0, 2, 3)).tolist()


@pytest.mark.parametrize("regions", [False, True])
def test_unimatch_two_strong_views_and_dropped_features(network, plain_views, regions):
    threshold = 0.6 if regions else 0.4
    method = make(UniMatch, network, regions=regions, p_cutmix=1.0, p_drop=0.0, threshold=threshold)
    unlabeled, labeled = inputs(regions)
    label, confident = hard(predict(method.teacher.network, unlabeled.image, regions), threshold, regions)
    kept = confident & unlabeled.valid
    values = step(method, network, unlabeled, labeled)
    # nothing is dropped here, so the stream is the plain decoding
    plain = dice(predict(network, unlabeled.image, regions), label, kept, complement=regions)
    assert values["fp"] == pytest.approx(plain, rel=1e-4)
    assert len(plain_views) == 2 and not torch.equal(*plain_views)
    expected = 0.0
    for box in plain_views:
        image, y, k = (torch.where(box, v.flip(0), v) for v in (unlabeled.image.sin(), label, kept))
        expected += dice(predict(network, image, regions), y, k, complement=regions)
    assert values["strong"] == pytest.approx(expected, rel=1e-4)
    predicted = label if regions else torch.cat([label == c for c in range(3)], 1)
    assert method.curves["kept_share"][1].tolist() == (predicted & unlabeled.valid).sum((0, 2, 3)).tolist()
    assert method.weights(0.0) == {"strong": 0.5, "fp": 1.0}


@pytest.mark.parametrize("cls", [FixMatch, UniMatch])
def test_they_wait_for_the_network_and_teach_the_classes_it_knows(network, cls):
    method = make(cls, network)
    assert all(method.weights(0.0).values())
    method.started = None
    assert not any(method.weights(0.9).values())
    method.taught = torch.tensor([True, False, True])
    step(method, network, *inputs(False))
    kept, predicted = method.curves["kept_share"]
    assert kept[1] == 0 < predicted[1] and kept[2] > 0


def test_unimatch_drops_features_of_the_weak_view(network, monkeypatch):
    method, (unlabeled, labeled) = make(UniMatch, network), batches(batch=20)
    decoded = []
    decode = SplitUNet.decode
    monkeypatch.setattr(SplitUNet, "decode", lambda self, f: decoded.append([v.detach() for v in f]) or decode(self, f))
    step(method, network, unlabeled, labeled)
    dropped = decoded[1]
    with torch.no_grad():
        plain = network.encoder(unlabeled.image)
    for a, b in zip(plain, dropped, strict=True):
        gone = (b == 0).flatten(2).all(2)
        assert gone.float().mean().item() == pytest.approx(0.5, abs=0.15)
        torch.testing.assert_close(b[~gone], 2 * a[~gone])


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_bcp_pastes_both_ways_and_cuts_stray_components_off(deep_network, plain_views, monkeypatch, regions, batch):
    network = deep_network
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
    ways = [~box, box]
    if batch == 3:
        ways = [way for way in (torch.stack([~box[0], box[1], ~box[2]]), torch.stack([box[0], ~box[1], box[2]]))
                if torch.equal(seen[0], torch.where(way, labeled.image, unlabeled.image))]  # fmt: skip
    assert len(ways) == len(seen)
    expected = {"labeled": 0.0, "unlabeled": 0.0}
    for image, from_labeled in zip(list(seen), ways, strict=True):
        assert torch.equal(image, torch.where(from_labeled, labeled.image, unlabeled.image))
        for name, y, valid, part in (
            ("labeled", labeled.label, labeled.valid, from_labeled),
            ("unlabeled", clean(taught), unlabeled.valid, ~from_labeled),
        ):
            expected[name] += of_levels(network, image, y, valid & part, regions) / len(ways)
    assert values == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}


def test_bcp_draws_which_sample_gives_the_box(network, plain_views):
    """nnU-Net forces foreground into the last samples of a batch; these are not always pasted the same way."""
    method, (unlabeled, labeled) = make(BCP, network), inputs(False)
    seen, gave = inputs_of(network), []
    for _ in range(100):
        plain_views.clear(), seen.clear()
        step(method, network, unlabeled, labeled)
        box, pasted = plain_views[0], seen[0] == labeled.image
        gave.append([torch.equal(own, here) for own, here in zip(pasted, box, strict=True)])
        assert sum(gave[-1]) == 1, "of two samples one gives the box, the other one what is around it"
    assert 35 < sum(last for _, last in gave) < 65


def test_bcp_weighs_unlabeled_parts_by_a_ramp_over_the_self_training(network):
    method = make(BCP, network)
    for progress, done in ((0.25, 0.0), (0.5, 1 / 3), (1.0, 1.0)):
        expected = {SUPERVISED: 0.0, "labeled": 1.0, "unlabeled": pytest.approx(0.5 * math.exp(-5 * (1 - done) ** 2))}
        assert method.weights(progress) == expected


def test_bcp_waits_for_the_network_and_ramps_from_there(network):
    method = make(BCP, network)
    method.started = None
    assert method.weights(0.9) == {SUPERVISED: 0.0, "labeled": 1.0}
    unlabeled, labeled = inputs(False)
    method.begin_step(0.9)
    assert step(method, network, unlabeled, labeled).keys() == {"labeled"}
    method.started = 0.5
    assert method.weights(0.5)["unlabeled"] == pytest.approx(0.5 * math.exp(-5))
    assert method.weights(0.75)["unlabeled"] == pytest.approx(0.5 * math.exp(-5 / 4))


def test_bcp_pastes_no_class_that_may_not_be_taught(network, monkeypatch):
    method = make(BCP, network)
    method.taught = torch.tensor([True, False, True])
    kept, original = [], BCP._loss
    monkeypatch.setattr(
        BCP, "_loss", lambda self, o, target, part: kept.append(target) or original(self, o, target, part)
    )
    unlabeled, labeled = inputs(False)
    step(method, network, unlabeled, labeled)
    _, of_unlabeled = kept
    with torch.no_grad():
        raw = method.teacher.network(unlabeled.image)[0].argmax(1, keepdim=True)
    assert not of_unlabeled.kept[raw == 1].any() and of_unlabeled.kept.any()


def test_bcp_begins_with_labeled_pairs(deep_network, plain_views):
    network = deep_network
    method, (unlabeled, labeled) = make(BCP, network, progress=0.1), batches()
    seen = inputs_of(network)
    values = step(method, network, unlabeled, labeled)
    box = plain_views[0]
    image, y, kept = (torch.where(box, v.flip(0), v) for v in (labeled.image, labeled.label, labeled.valid))
    assert torch.equal(seen[0], image) and len(seen) == 1
    assert values == {"labeled": pytest.approx(of_levels(network, image, y, kept), rel=1e-4)}
    assert method.weights(0.1) == {SUPERVISED: 0.0, "labeled": 1.0}
    assert [start for start, _ in method.stages] == [0.0], "when self-training begins is not for the clock to say"


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
        weak = unlabeled.image.clone()
        values = step(method, network, unlabeled, labeled)
        assert torch.equal(unlabeled.image, weak), "the weak view stays as it is"
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
    for name in vars(constants).keys() - {"strong_view"}:
        for value in (-1, 1.5) if name in ABOVE_1 else (-1,):
            with pytest.raises(ValueError, match=f"{name} must be in .*, got {value}"):
                replace(constants, **{name: value})


# the ends of a constant's range: whether each is in it
ENDS = {
    "weight": {0.0: True}, "lambda_strong": {0.0: True}, "lambda_fp": {0.0: True}, "noise": {0.0: True},
    "alpha": {0.0: False}, "passes": {1: True}, "threshold": {0.0: True, 1.0: True}, "p_cutmix": {0.0: True, 1.0: True},
    "warmup": {0.0: True, 1.0: False}, "ema_decay": {0.0: True, 1.0: False}, "p_drop": {0.0: True, 1.0: False},
    "pretrain": {0.0: True, 1.0: False}, "edge": {0.0: False, 1.0: False},
}  # fmt: skip


@pytest.mark.parametrize(("cls", "constants"), ALL)
def test_a_range_has_the_ends_that_are_said(cls, constants):
    for name in vars(constants).keys() - {"strong_view"}:
        for value, allowed in ENDS[name].items():
            if allowed:
                assert vars(replace(constants, **{name: value}))[name] == value
            else:
                with pytest.raises(ValueError, match=name):
                    replace(constants, **{name: value})


# of each decoding of a step, in order, whether it has a graph; BCP's mixtures go through all levels instead
GRAPHS = {
    MeanTeacher: [False, True],
    UAMT: [False] * 9 + [True],
    ICT: [False, True],
    CPS: [False, True, True],
    FixMatch: [False, True],
    UniMatch: [False, True, True, True],
    BCP: [False],
}


@pytest.mark.parametrize("cls", GRAPHS)
def test_what_only_labels_has_no_graph(network, monkeypatch, cls):
    method, (unlabeled, labeled), graphs = make(cls, network), batches(), []
    decode = SplitUNet.decode

    def spy(self, features):
        logits = decode(self, features)
        graphs.append(logits.requires_grad)
        return logits

    monkeypatch.setattr(SplitUNet, "decode", spy)
    step(method, network, unlabeled, labeled)
    assert graphs == GRAPHS[cls]


CONSTANTS = {
    # SSL4MIS, train_mean_teacher_2D.py: 0.1 beside 1/2 (CE + Dice), 1000 of 30 000 iterations without
    MeanTeacherConstants: {"weight": 0.2, "warmup": 1 / 30, "ema_decay": 0.99, "noise": 0.1},
    # SSL4MIS, train_uncertainty_aware_mean_teacher_3D.py: the same without a warm-up
    UAMTConstants: {"weight": 0.2, "warmup": 0.0, "ema_decay": 0.99, "noise": 0.1, "passes": 8, "threshold": 0.75},
    # SSL4MIS, train_interpolation_consistency_training_2D.py
    ICTConstants: {"weight": 0.2, "ema_decay": 0.99, "alpha": 0.2},
    # SSL4MIS, train_cross_pseudo_supervision_2D.py
    CPSConstants: {"weight": 0.2},
    # UniMatch's repository, fixmatch.py; the average is CrossMatch's of this project
    FixMatchConstants: {"weight": 1.0, "threshold": 0.95, "p_cutmix": 0.5, "ema_decay": 0.999},
    # UniMatch's repository, more-scenarios/medical/unimatch.py: 1/2 [1/2 (CE + Dice) + 1/4 (s1 + s2) + 1/2 fp]
    UniMatchConstants: {
        "lambda_strong": 0.5, "lambda_fp": 1.0, "threshold": 0.95, "p_drop": 0.5, "p_cutmix": 0.5, "ema_decay": 0.999,
    },
    # BCP's repository, code/ACDC_BCP_train.py
    BCPConstants: {"weight": 0.5, "edge": 2 / 3, "pretrain": 0.25, "ema_decay": 0.99},
    # the paper's section 4; its repository has half of the weights
    CrossMatchPaperConstants: {
        "threshold": 0.95, "lambda_ip": 2.0, "lambda_kd": 2.0, "eta": 0.3, "p_weak": 0.25, "p_strong": 0.75,
        "p_cutmix": 0.5,
    },
    # this project's, but for the paper's eta, p_weak, p_strong and p_cutmix
    CrossMatchConstants: {
        "threshold": 0.9, "weight": 1.0, "ramp": 0.05, "ema_decay": 0.999, "lambda_ip": 1.0, "lambda_kd": 0.0,
        "eta": 0.3, "p_weak": 0.25, "p_strong": 0.75, "p_cutmix": 0.5, "p_foreground": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("constants", CONSTANTS)
def test_the_constants_are_those_of_their_source(constants):
    found = vars(constants()).copy()
    assert found.pop("strong_view", STRONG_VIEW) is STRONG_VIEW  # its own test has its ranges
    assert found == CONSTANTS[constants]
    assert bcp.EPS == 1e-10  # code/utils/losses.py, DiceLoss


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
            patch.setattr(Method, "strong_view", lambda self, batch, n=number: batch.image.sin() * next(n))
            step(method, network, unlabeled, labeled)
        views.append(spied[-2:])
    for n in (0, 1):
        box = plain_views[2 + n]
        assert torch.equal(views[1][n], torch.where(box, (n + 1) * seen[0], (n + 1) * seen[1]))


class Own(MeanTeacher):
    """Names nnU-Net's loss among its weights, and has an average whose decay changes with the training."""

    def weights_after_warmup(self, progress):
        return {SUPERVISED: 1.0, **super().weights_after_warmup(progress)}

    def ema_decay(self, progress):
        return progress


def test_the_warm_up_leaves_nnunets_own_loss_alone(network):
    method = Own(MeanTeacherConstants(warmup=0.5), network, patch=SPATIAL)
    assert not any(method.weights(0.4).values()) and method.weights(0.4).get(SUPERVISED, 1.0) == 1.0
    assert method.weights(0.5) == {SUPERVISED: 1.0, "consistency": pytest.approx(0.2 * ramp_up(0.5))}


def test_the_average_has_the_decay_of_the_moment(network):
    method = Own(MeanTeacherConstants(), network, patch=SPATIAL)
    expected, weight = None, weights_of(network)[0]
    for progress in (0.0, 0.25, 0.6):
        with torch.no_grad():
            weight.add_(1.0)
        method.begin_step(progress)
        method.after_step(network)
        expected = weight.clone() if expected is None else progress * expected + (1 - progress) * weight
    torch.testing.assert_close(weights_of(method.teacher.network)[0], expected)


@pytest.mark.parametrize(
    "method_and_constants",
    [
        (UniMatch, UniMatchConstants()),
        (CrossMatchPaper, CrossMatchPaperConstants()),
    ],
    ids=["UniMatch", "CrossMatchPaper"],
)
def test_a_region_that_is_surely_nowhere_is_pushed_out_of_false_positives(network, monkeypatch, method_and_constants):
    """Confident "nothing here" of all regions, against streams that see each of them in half of the voxels."""
    cls, constants = method_and_constants
    method = cls(constants, network, patch=SPATIAL, regions=True)
    method.started = 0.0
    unlabeled, labeled = inputs(True)
    nothing, half = torch.full((2, 3, *SPATIAL), -8.0), torch.full((2, 3, *SPATIAL), -2.0)
    half[:, :, ::2] = 2.0
    half.requires_grad_()
    monkeypatch.setattr(SplitUNet, "decode", lambda self, features: 1 * half if torch.is_grad_enabled() else nothing)
    values = {name: value for name, value in step(method, network, unlabeled, labeled).items() if name != "dkd"}
    p = half.detach().sigmoid()
    loss = dice(
        p, torch.zeros_like(p).bool(), unlabeled.valid, complement=True
    )  # mean of the regions', 1, and the rest's
    assert loss > 0.6
    streams = {"strong": 2, "fp": 1} if cls is UniMatch else {"ip": 1, "tkd": 1}
    assert values == {name: pytest.approx(count * loss, rel=1e-4) for name, count in streams.items()}
    false = half.grad[:, :, ::2][unlabeled.valid[:, :, ::2].expand(-1, 3, -1, -1)]
    assert (false > 0).all() and false.sum() > 0.05
