"""CrossMatch against a slow version: every stream in one graph, as the definitions read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.methods import UnlabeledBatch, crossmatch_paper
from nnunetv2_crossmatch.methods.crossmatch_paper import CrossMatchPaper, CrossMatchPaperConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet, drop_channels
from nnunetv2_crossmatch.views import strong_view
from nnunetv2_crossmatch.views.mixing import paste
from tests.methods.conftest import SPATIAL

CONSTANTS = CrossMatchPaperConstants(threshold=0.4, lambda_ip=1.0, lambda_kd=2.0)


def unlabeled_batch(batch: int = 3, seed: int = 1) -> UnlabeledBatch:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(batch, 1, 16, 16, dtype=torch.bool)
    valid[..., :2] = False
    return UnlabeledBatch(torch.randn(batch, 1, 16, 16, generator=generator), valid)


@pytest.fixture
def record(monkeypatch) -> dict[str, list]:
    """Everything that is drawn, in order, so that the slow version can use it again."""
    drawn: dict[str, list] = {"apply_strong": [], "draw_boxes": [], "draw_channel_masks": []}

    def recording(name, original):
        def draw(*args):
            drawn[name].append(original(*args))
            return drawn[name][-1]

        return draw

    for name in drawn:
        module = strong_view if name == "apply_strong" else crossmatch_paper
        monkeypatch.setattr(module, name, recording(name, getattr(module, name)))
    return drawn


def step(method: CrossMatchPaper, network: nn.Module, unlabeled: UnlabeledBatch) -> dict[str, float]:
    weights, values = method.weights(1.0), {}
    for losses in method.losses(SplitUNet(network), unlabeled):
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        for name, loss in losses.items():
            values[name] = values.get(name, 0) + loss.item()
    return values


def slow_dice(p, label, kept) -> torch.Tensor:
    losses = []
    for c in range(p.shape[1]):
        y = (label == c)[:, 0][kept[:, 0]].float()
        q = p[:, c][kept[:, 0]]
        losses.append(1 - (2 * (q * y).sum() + 1e-5) / ((q**2).sum() + (y**2).sum() + 1e-5))
    return torch.stack(losses).mean()


def slow_losses(network, unlabeled, drawn, shift, constants) -> dict[str, torch.Tensor]:
    """The definitions, stream by stream."""

    def decode(features):
        return network.decoder(features)[0]

    def hard(logits):
        p = logits.detach().softmax(1)
        confidence, label = p.max(1, keepdim=True)
        return label, (confidence >= constants.threshold) & unlabeled.valid

    x_w = unlabeled.image
    strong = [torch.where(unlabeled.valid, view, x_w) for view in drawn["apply_strong"]]
    (x_s1, x_s2), (box1, box2) = strong, drawn["draw_boxes"]
    m_ww, m_sw, m_ws, m_ss = drawn["draw_channel_masks"]

    def partner(v):
        return v.roll(shift, 0)

    def mix(box, pair):
        return tuple(paste(box, v, partner(v)) for v in pair)

    f_w = network.encoder(x_w)
    y_nw = hard(decode(f_w))
    p_ww, p_sw = decode(drop_channels(f_w, m_ww)), decode(drop_channels(f_w, m_sw))
    y_ww, y_sw = hard(p_ww), hard(p_sw)
    p_ns1 = network(paste(box1, x_s1, partner(x_s1)))[0]
    f_s = network.encoder(paste(box2, x_s2, partner(x_s2)))
    p_ns2, p_ws, p_ss = decode(f_s), decode(drop_channels(f_s, m_ws)), decode(drop_channels(f_s, m_ss))

    def d(logits, target):
        return slow_dice(logits.softmax(1), *target)

    return {
        "ip": (d(p_ns1, mix(box1, y_nw)) + d(p_ns2, mix(box2, y_nw))) / 2,
        "tkd": (d(p_ww, y_nw) + d(p_sw, y_nw) + d(p_ws, mix(box2, y_nw)) + d(p_ss, mix(box2, y_nw))) / 4,
        "dkd": (d(p_ws, mix(box2, y_ww)) + d(p_ss, mix(box2, y_sw))) / 2,
    }


@pytest.mark.parametrize("changed", [{}, {"p_cutmix": 0.0}], ids=str)
def test_losses_and_gradients_equal_the_definitions(network, record, changed):
    constants = replace(CONSTANTS, **changed)
    torch.manual_seed(5)
    method, unlabeled = CrossMatchPaper(constants, network, patch=SPATIAL), unlabeled_batch()
    values = step(method, network, unlabeled)
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()

    slow = slow_losses(network, unlabeled, record, method.partner._shift, constants)
    total = slow["ip"] + 2 * (0.7 * slow["tkd"] + 0.3 * slow["dkd"])
    total.backward()
    assert values == pytest.approx({name: loss.item() for name, loss in slow.items()}, abs=1e-6)
    expected = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) == len(expected)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_the_teacher_gets_no_gradient(network):
    """Of the seven decodings the first, the teacher's, has no graph; all students have one."""
    has_graph = []

    class Spy(SplitUNet):
        def decode(self, features):
            logits = super().decode(features)
            has_graph.append(logits.requires_grad)
            return logits

    for losses in CrossMatchPaper(CONSTANTS, network, patch=SPATIAL).losses(Spy(network), unlabeled_batch()):
        sum(losses.values()).backward()
    assert has_graph == [False] + [True] * 6


def test_every_stream_drops_its_share_of_every_encoder_output(network, monkeypatch):
    method, unlabeled = CrossMatchPaper(CrossMatchPaperConstants(), network, patch=SPATIAL), unlabeled_batch(batch=30)
    shares = []
    decode = SplitUNet.decode

    def spy(self, features):
        shares.append([float((level == 0).flatten(2).all(2).float().mean()) for level in features])
        return decode(self, features)

    monkeypatch.setattr(SplitUNet, "decode", spy)
    torch.manual_seed(0)
    step(method, network, unlabeled)
    # n of the weak view, w and s of it; n of the first strong view; n of the second, w and s of it
    for found, share in zip(shares, [0, 0.25, 0.75, 0, 0, 0.25, 0.75], strict=True):
        assert found == pytest.approx([share] * 3, abs=0.1 * (share > 0))


def test_labels_follow_their_image_through_cutmix(network, monkeypatch):
    """A network-free check: what is pasted into image, label and confidence is the same partner's same box."""
    method = CrossMatchPaper(replace(CONSTANTS, threshold=0.0), network, patch=SPATIAL)
    unlabeled = unlabeled_batch(batch=4)
    seen = []
    # the "pseudo-label" of a voxel is the sign of its image, so the composites have to agree everywhere
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image)
    monkeypatch.setattr(
        method,
        "pseudo_label",
        lambda logits, batch: crossmatch_paper.PseudoLabel(
            (unlabeled.image > 0).long(), unlabeled.image > 0.5, unlabeled.image > -1
        ),
    )
    network_inputs = []

    class Spy(SplitUNet):
        def encode(self, image):
            network_inputs.append(image)
            return super().encode(image)

    original = method._learn

    def learn(stream, logits, target):
        seen.append((stream, target))
        return original(stream, logits, target)

    monkeypatch.setattr(method, "_learn", learn)
    torch.manual_seed(3)
    for losses in method.losses(Spy(network), unlabeled):
        sum(losses.values()).backward()
    weak, mixed1, mixed2 = network_inputs
    inputs = dict(zip(("dropout_weak", "dropout_strong"), (weak, weak), strict=True))
    assert not torch.equal(mixed1, weak) and not torch.equal(mixed2, weak), "no box was drawn: choose another seed"
    strong = iter((mixed1, mixed2))
    for stream, target in seen:
        image = inputs.get(stream, mixed2 if stream == "strong_view_dropout" else None)
        image = next(strong) if image is None else image
        assert torch.equal(target.label, (image > 0).long())
        assert torch.equal(target.kept, image > 0.5)
        assert torch.equal(target.valid, image > -1)


def test_a_single_sample_is_mixed_with_the_previous_steps(network, monkeypatch):
    everything = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    monkeypatch.setattr(crossmatch_paper, "draw_boxes", lambda *args: everything)
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image)
    method = CrossMatchPaper(CONSTANTS, network, patch=SPATIAL)
    inputs = []

    class Spy(SplitUNet):
        def encode(self, image):
            inputs.append(image)
            return super().encode(image)

    batches = [unlabeled_batch(batch=1, seed=seed) for seed in range(3)]
    for unlabeled in batches:
        for losses in method.losses(Spy(network), unlabeled):
            sum(losses.values()).backward()
    for i, unlabeled in enumerate(batches):
        weak, strong1, strong2 = inputs[3 * i : 3 * i + 3]
        assert torch.equal(weak, unlabeled.image)
        assert torch.equal(strong1, batches[max(i - 1, 0)].image)
        assert torch.equal(strong2, batches[max(i - 1, 0)].image)


def test_the_papers_weights():
    method = CrossMatchPaper(CONSTANTS, nn.Identity(), patch=SPATIAL)
    assert method.weights(0.0) == pytest.approx({"ip": 1.0, "tkd": 1.4, "dkd": 0.6})


def test_nothing_confident_is_a_step_without_gradient(network):
    values = step(
        CrossMatchPaper(replace(CONSTANTS, threshold=1.0), network, patch=SPATIAL), network, unlabeled_batch()
    )
    assert set(values.values()) == {0.0}
    assert all((p.grad == 0).all() for p in network.parameters() if p.grad is not None)


def test_curves_count_kept_voxels_per_class_and_agreement(network):
    method, unlabeled = CrossMatchPaper(CONSTANTS, network, patch=SPATIAL), unlabeled_batch()
    with torch.no_grad():
        p = network(unlabeled.image)[0].softmax(1)
    confidence, label = p.max(1, keepdim=True)
    step(method, network, unlabeled)
    kept, predicted = method.curves["kept_share"]
    for c in range(3):
        of_class = (label == c) & unlabeled.valid
        assert predicted[c] == of_class.sum()
        assert kept[c] == (of_class & (confidence >= CONSTANTS.threshold)).sum()
    valid = unlabeled.valid.sum()
    assert method.curves["agreement_dropout_weak"][1] == valid
    assert method.curves["agreement_strong_view"][1] == 2 * valid


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", 1.5),
        ("eta", -0.1),
        ("p_strong", 1.0),
        ("lambda_kd", -1.0),
    ],
)
def test_a_constant_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        replace(CONSTANTS, **{name: value})


def test_regions_are_binary_per_channel(network):
    method, unlabeled = (
        CrossMatchPaper(replace(CONSTANTS, threshold=0.6), network, patch=SPATIAL, regions=True),
        unlabeled_batch(),
    )
    with torch.no_grad():
        p = network(unlabeled.image)[0].sigmoid()
    pseudo = method.pseudo_label(p.logit(), unlabeled)
    assert torch.equal(pseudo.label, p > 0.5)
    assert torch.equal(pseudo.kept, ((p >= 0.6) | (p <= 0.4)) & unlabeled.valid)
    values = step(method, network, unlabeled)
    assert all(0 < v < 1 for v in values.values())
    assert method.curves["kept_share"][0].shape == (3,)
