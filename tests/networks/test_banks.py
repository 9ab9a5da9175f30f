import torch

from nnunetv2_crossmatch.networks.banks import Bank, ClassQueue


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float)[:, None].expand(-1, 2)


def push(bank: Bank, *values: float) -> None:
    bank.push(rows(*values), torch.tensor([value >= 0 for value in values]))


def test_a_bank_fills_up_and_then_forgets_the_oldest():
    bank = Bank(5, 2)
    assert not bank.known.any()
    push(bank, 1, 2, 3)
    assert bank.known.tolist() == [True] * 3 + [False] * 2
    push(bank, 4, 5, 6)
    assert bank.known.all() and bank.entries[:, 0].tolist() == [6, 5, 4, 3, 2]
    push(bank, *range(7, 17))
    assert bank.entries[:, 0].tolist() == [16, 15, 14, 13, 12] and bank.count == 5
    push(bank, -1, 20, torch.inf)  # one is not usable, one not finite
    assert bank.entries[:, 0].tolist() == [20, 16, 15, 14, 13]


def test_what_is_not_usable_or_not_finite_leaves_no_trace_even_in_an_empty_memory():
    bank, queue = Bank(3, 2), ClassQueue(2, 3, 1)
    push(bank, -1, torch.inf)
    assert bank.count == 0 and not bank.entries.any()
    push(bank, -1, 5)
    assert bank.known.tolist() == [True, False, False] and bank.entries[:, 0].tolist() == [5, 0, 0]
    both = torch.tensor([True, True])
    queue.push(torch.tensor([[[torch.nan], [2.0]], [[torch.inf], [torch.nan]]]), both)
    assert queue.known.tolist() == [[True, False, False], [False] * 3]
    queue.push(torch.tensor([[[3.0], [torch.nan]], [[30.0], [40.0]]]), both)
    assert queue.entries[..., 0].tolist() == [[3, 2, 0], [30, 40, 0]]


def test_a_class_that_does_not_occur_keeps_its_entries():
    queue = ClassQueue(2, 3, 1)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    queue.push(torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]), both)
    queue.push(torch.tensor([[[3.0], [4.0]], [[30.0], [40.0]]]), first)
    assert queue.entries[..., 0].tolist() == [[3, 4, 1], [10, 20, 0]]
    assert queue.known.tolist() == [[True, True, True], [True, True, False]]


def test_what_is_pushed_carries_no_gradient():
    bank, queue = Bank(2, 2), ClassQueue(1, 2, 2)
    bank.push(torch.ones(1, 2, requires_grad=True) * 2, torch.tensor([True]))
    queue.push(torch.ones(1, 1, 2, requires_grad=True) * 2, torch.tensor([True]))
    assert not bank.entries.requires_grad and not queue.entries.requires_grad
