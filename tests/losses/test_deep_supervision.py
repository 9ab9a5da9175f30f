import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunetv2_crossmatch.losses.deep_supervision import deeply_supervised


def loss(logits, label, kept):
    assert logits.shape[2:] == label.shape[2:] == kept.shape[2:] and logits.dtype == torch.float32
    return (logits[:, :1] * label * kept).sum()


STRIDES = {  # of each level, from the finest; the last one has weight 0
    (32, 48): [(1, 1), (2, 2), (4, 4), (8, 8), (16, 16)],
    (16, 32, 32): [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)],
    (12, 32, 48): [(1, 1, 1), (1, 2, 2), (2, 4, 4), (2, 8, 8), (4, 16, 16)],
    (20, 28): [(1, 1), (2, 1), (4, 4), (4, 8), (4, 16)],  # 28 is no multiple of 8
}


@pytest.mark.parametrize("spatial", STRIDES, ids=str)
@pytest.mark.parametrize("channels", [1, 3], ids=["classes", "regions"])
def test_every_level_sees_the_labels_that_nnunet_would_show_it(spatial, channels):
    """Label and kept voxels are those of nnU-Net's own transform."""
    torch.manual_seed(0)
    label = torch.randint(0, 2 if channels > 1 else 5, (2, channels, *spatial), dtype=torch.uint8)
    label = label.bool() if channels > 1 else label
    kept = torch.rand(label.shape) < 0.5
    scales = [[1 / s for s in strides] for strides in STRIDES[spatial]]
    transform = DownsampleSegForDSTransform(scales)
    theirs = [
        [
            torch.stack([transform(segmentation=v)["segmentation"][level] for v in values])
            for level in range(len(scales))
        ]
        for values in (label, kept)
    ]
    seen = []

    def spy(logits, label, kept):
        assert logits.dtype == torch.float32  # also where mixed precision has made it half
        seen.append((label, kept))
        return logits.sum()

    deeply_supervised(
        spy, [torch.zeros(2, 4, *shape.shape[2:], dtype=torch.float16) for shape in theirs[0]], label, kept
    )
    assert len(seen) == len(scales) - 1
    for (mine, counted), their_label, their_kept in zip(seen, *theirs, strict=False):
        assert mine.dtype == label.dtype and counted.dtype == torch.bool
        assert torch.equal(mine, their_label) and torch.equal(counted, their_kept)


def test_levels_are_weighted_as_nnunet_does():
    torch.manual_seed(0)
    label, kept = torch.ones(1, 1, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    outputs = [torch.randn(1, 2, size, size) for size in (16, 8, 4, 2)]
    expected = [loss(o, *(torch.ones_like(o[:, :1]),) * 2) for o in outputs]
    found = deeply_supervised(loss, outputs, label, kept)
    assert found.item() == pytest.approx(float(4 * expected[0] + 2 * expected[1] + expected[2]) / 7, rel=1e-5)
    assert deeply_supervised(loss, outputs[0], label, kept) == expected[0]
    assert deeply_supervised(loss, outputs[:1], label, kept) == expected[0]
