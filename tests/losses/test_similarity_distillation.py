import pytest
import torch

from nnunetv2_crossmatch.losses.similarity_distillation import similarity_distillation
from tests.losses.slow import slow_similarity_distillation

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.05}


@pytest.mark.parametrize("filled", [1, 5, 12])
def test_equals_the_slow_version_over_the_filled_entries(filled):
    torch.manual_seed(0)
    student, teacher, entries = (torch.randn(n, 8, dtype=torch.float64) for n in (3, 3, 12))
    loss = similarity_distillation(student, teacher, entries, torch.arange(12) < filled, **TEMPERATURES)
    assert loss.tolist() == pytest.approx(slow_similarity_distillation(student, teacher, entries[:filled]), abs=1e-9)


def test_only_the_student_gets_a_gradient_and_an_empty_bank_gives_none():
    torch.manual_seed(0)
    student, teacher, entries = (torch.randn(n, 8, requires_grad=True) for n in (3, 3, 12))
    similarity_distillation(student, teacher, entries, torch.arange(12) < 4, **TEMPERATURES).sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None and entries.grad is None
    student.grad = None
    loss = similarity_distillation(student, teacher, entries, torch.zeros(12, dtype=torch.bool), **TEMPERATURES)
    loss.sum().backward()
    assert not loss.any() and not student.grad.any()


def test_what_all_embeddings_share_does_not_count():
    torch.manual_seed(0)
    student, teacher, entries = (torch.randn(n, 8, dtype=torch.float64) for n in (3, 3, 12))
    known, shared = torch.arange(12) < 9, 100 * torch.ones(8, dtype=torch.float64)
    losses = [
        similarity_distillation(student + s, teacher + s, entries + s, known, **TEMPERATURES) for s in (0, shared)
    ]
    torch.testing.assert_close(*losses)
