import pytest
import torch

from nnunetv2_crossmatch.losses.confident_cross_entropy import confident_cross_entropy


def test_equals_the_slow_version_and_images_without_valid_voxels_count_nothing():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, requires_grad=True)
    label, confidence = torch.randint(0, 4, (3, 1, 5, 6), dtype=torch.uint8), torch.rand(3, 1, 5, 6)
    valid = torch.rand(3, 1, 5, 6) > 0.3
    valid[2] = False
    expected = []
    for i in range(3):
        losses, sure = [], []
        for y, x in valid[i, 0].nonzero().tolist():
            losses.append(-logits[i, :, y, x].log_softmax(0)[label[i, 0, y, x].int()].item())
            sure.append(confidence[i, 0, y, x].item() >= 0.4)
        expected.append(sum(sure) / len(sure) * sum(losses) / len(losses) if losses else 0.0)
    loss = confident_cross_entropy(logits, label, confidence, valid, threshold=0.4)
    assert loss.item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    loss.backward()
    assert not logits.grad[~valid.expand_as(logits)].any()
