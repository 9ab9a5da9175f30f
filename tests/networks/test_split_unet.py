from functools import partial

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_crossmatch.networks.split_unet import SplitUNet, draw_channel_masks, drop_channels

COMMON = dict(
    n_stages=3,
    features_per_stage=[4, 6, 8],
    conv_op=nn.Conv3d,
    kernel_sizes=3,
    strides=[1, 2, 2],
    num_classes=3,
    n_conv_per_stage_decoder=1,
    conv_bias=True,
    norm_op=nn.InstanceNorm3d,
    norm_op_kwargs={"affine": True},
    nonlin=nn.LeakyReLU,
    nonlin_kwargs={"inplace": True},
)


@pytest.fixture(params=["plain", "residual"])
def network(request) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "plain":
        return PlainConvUNet(2, n_conv_per_stage=1, deep_supervision=True, **COMMON).double()
    return ResidualEncoderUNet(2, n_blocks_per_stage=1, deep_supervision=True, **COMMON).double()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 2, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_halves_together_are_the_network(network, image):
    split = SplitUNet(network)
    assert torch.equal(split.decode(split.encode(image)), network(image)[0].float())
    network.decoder.deep_supervision = False
    assert torch.equal(split.decode(split.encode(image)), network(image).float())


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_levels_come_with_exactly_what_the_forward_returns(network, image, deep_supervision):
    network.decoder.deep_supervision = deep_supervision
    outputs, levels = SplitUNet(network).forward_levels(image)
    expected = network(image)
    if deep_supervision:
        assert len(outputs) == len(expected) and all(map(torch.equal, outputs, expected))
    else:
        assert torch.equal(outputs, expected)
    assert [level.shape[1:] for level in levels] == [(4, 8, 8, 8), (6, 4, 4, 4), (8, 2, 2, 2)]
    for level, segment in zip(levels, reversed(network.decoder.seg_layers), strict=False):
        assert any(torch.equal(segment(level), output) for output in network(image)) or not deep_supervision


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_the_economical_forward_keeps_less_and_has_the_same_gradients(
    network, image, monkeypatch, compiled, mixed_precision
):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="aot_eager"))
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=mixed_precision)
    split = SplitUNet(network.float(), autocast)
    if compiled:
        split.encoder.compile = split.decoder.compile = lambda: None
        split.compile()
    found = []
    for economical in (False, True):
        kept = set()
        split.forward_levels(image.float(), economical=economical)  # compiles before the hooks; torch 2.1 traces them

        def hold(tensor, kept=kept):
            kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            outputs, levels = split.forward_levels(image.float(), economical=economical)
        loss = sum(output.float().square().mean() for output in [*outputs, *levels])
        gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        found.append((sum(size for _, size in kept), gradients))
    (kept, expected), (kept_less, gradients) = found
    assert kept_less < 0.7 * kept
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(expected, gradients, strict=True))


@pytest.mark.parametrize(("stages", "calls"), [(3, [2, 1, 1]), (4, [2, 1, 1, 1]), (6, [2, 2, 1, 1, 1, 1])])
def test_the_finest_third_of_the_levels_is_computed_twice(stages, calls):
    sizes = {"n_stages": stages, "features_per_stage": [2] * stages, "strides": [1] + [2] * (stages - 1)}
    network = PlainConvUNet(1, n_conv_per_stage=1, deep_supervision=True, **{**COMMON, **sizes})
    counts = [[0] * stages, [0] * stages]
    for half, stages_of in enumerate((network.encoder.stages, reversed(network.decoder.stages))):
        for level, stage in enumerate(stages_of):
            stage.register_forward_pre_hook(
                lambda *_, half=half, level=level: counts[half].__setitem__(level, counts[half][level] + 1)
            )
    outputs, _ = SplitUNet(network).forward_levels(torch.randn(1, 1, 64, 64, 64), economical=True)
    outputs[0].mean().backward()
    assert counts == [calls, [*calls[:-1], 0]]


def test_relay_gradients_equal_those_of_one_big_graph(network, image):
    split = SplitUNet(network)
    parameters = list(network.parameters())
    torch.manual_seed(2)
    masks = draw_channel_masks(split.encode(image), 0.5)

    skips = network.encoder(image)
    naive = sum(network.decoder(f)[0].square().mean() for f in (skips, drop_channels(skips, masks)))
    expected = torch.autograd.grad(naive, parameters, allow_unused=True)

    with split.relay(image) as leaves:
        network.decoder(leaves)[0].square().mean().backward()
        network.decoder(drop_channels(leaves, masks))[0].square().mean().backward()
    assert leaves == [], "the features must not outlive their stream"
    for parameter, gradient in zip(parameters, expected, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


def test_relay_without_a_loss_or_with_an_error_leaves_no_gradient(network, image):
    split = SplitUNet(network)
    with split.relay(image):
        pass
    with pytest.raises(ZeroDivisionError), split.relay(image) as leaves:
        split.decode(leaves).sum()
        raise ZeroDivisionError
    assert all(p.grad is None for p in network.encoder.parameters())


def test_channel_masks_are_independent_per_sample_and_level_and_keep_the_mean():
    torch.manual_seed(0)
    features = [torch.ones(8, 400, 2, 2, 2), torch.ones(8, 500, 1, 1, 1)]
    masks = draw_channel_masks(features, 0.75)
    for feature, mask in zip(features, masks, strict=True):
        assert mask.shape == (*feature.shape[:2], 1, 1, 1)
        assert set(mask.unique().tolist()) == {0.0, 4.0}
        assert mask.mean().item() == pytest.approx(1, abs=0.1)
        assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(masks[0][:, :400], masks[1][:, :400])
    dropped = drop_channels(features, masks)
    assert all(torch.equal(d, f * m) for d, f, m in zip(dropped, features, masks, strict=True))


def test_dropout_is_active_in_eval_mode(network, image):
    split = SplitUNet(network.eval())
    features = split.encode(image)
    torch.manual_seed(0)
    first, second = (split.decode(drop_channels(features, draw_channel_masks(features, 0.5))) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first, split.decode(features))


def test_a_network_without_halves_is_refused_by_name():
    with pytest.raises(TypeError, match="Linear has no encoder and decoder"):
        SplitUNet(nn.Linear(2, 2))
