import pytest
import torch

from nnunetv2_crossmatch.losses.deep_supervision import deeply_supervised


def loss(logits, label, kept):
    assert logits.shape[2:] == label.shape[2:] == kept.shape[2:] and logits.dtype == torch.float32
    return (logits[:, :1] * label * kept).sum()


def test_levels_are_weighted_as_nnunet_does_and_take_the_nearest_label():
    torch.manual_seed(0)
    label = torch.randint(0, 3, (1, 1, 8, 8))
    kept = torch.rand(1, 1, 8, 8) < 0.5
    outputs = [torch.randn(1, 2, size, size) for size in (8, 4, 2)]
    expected = [loss(outputs[i], label[..., :: 2**i, :: 2**i], kept[..., :: 2**i, :: 2**i]) for i in range(3)]
    found = deeply_supervised(loss, outputs, label, kept)
    assert found.item() == pytest.approx(float(2 / 3 * expected[0] + 1 / 3 * expected[1]), rel=1e-5)
    assert deeply_supervised(loss, outputs[0], label, kept) == expected[0]
    assert deeply_supervised(loss, outputs[:1], label, kept) == expected[0]
