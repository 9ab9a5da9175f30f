import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.networks.ema import EMATeacher


class SharedBlock(nn.Module):
    """Lists one layer under two names, as the blocks of dynamic_network_architectures do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Linear(3, 2)
        self.all_modules = nn.Sequential(self.conv)
        self.register_buffer("steps", torch.zeros(()))


def test_fifty_updates_equal_the_closed_form():
    torch.manual_seed(0)
    student = SharedBlock().double()
    decay, history = 0.9, []
    teacher = EMATeacher(student)
    for _ in range(50):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        teacher.update(student, decay)
        history.append(student.conv.weight.detach().clone())

    expected = torch.zeros_like(history[0])
    for k in range(50):  # sum over students of (1 - d_k) * product of all later decays
        share = 1.0
        for j in range(k, 50):
            d = min(decay, 1 - 1 / (j + 1))
            share *= (1 - d) if j == k else d
        expected += share * history[k]
    torch.testing.assert_close(teacher.network.conv.weight, expected, rtol=1e-5, atol=1e-5)  # decays are float32


def test_the_first_update_copies_and_the_teacher_gets_no_gradient():
    student = nn.Linear(3, 2)
    teacher = EMATeacher(student)
    with torch.no_grad():
        student.weight.fill_(7)
    teacher.update(student, 0.99)
    assert torch.equal(teacher.network.weight, student.weight)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_state_survives_saving(tmp_path):
    student = nn.Linear(3, 2)
    teacher = EMATeacher(student)
    teacher.update(student, 0.99)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    other = EMATeacher(nn.Linear(3, 2))
    other.load_state_dict(torch.load(tmp_path / "teacher.pth", weights_only=True))
    assert other.updates == 1 and torch.equal(other.network.weight, teacher.network.weight)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay):
    student = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=str(decay)):
        EMATeacher(student).update(student, decay)
