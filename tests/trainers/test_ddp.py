"""Two processes on the CPU."""

import gc
import os
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from nnunetv2_crossmatch.networks.distributed import average_gradients, gather_rows
from nnunetv2_crossmatch.nnunet.logger import PREFIX
from tests.conftest import DATASET
from tests.trainers.conftest import ONLINE, SmokeEMA, SmokeHalves, SmokePlusPlus
from tests.trainers.processes import assert_same_on_both, eager, finish, start, ten_steps


def train(rank: int, folder: str, port: int) -> None:
    trainer = start(rank, folder, port, SmokeEMA)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert_same_on_both([*trainer.network.parameters(), *trainer.method.teacher.parameters()])
    assert trainer.logger.get_value(PREFIX + "gradient_norm_unlabeled", 0) > 0
    del trainer
    finish()


def count_reductions() -> list[int]:
    """Elements of each tensor that ``all_reduce`` sums over the processes from now on."""
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(values: torch.Tensor, *arguments, **options):
        sizes.append(values.numel())
        return all_reduce(values, *arguments, **options)

    dist.all_reduce = counted
    return sizes


def train_every(rank: int, folder: str, port: int) -> None:
    """Ten steps of each; a second network is the same on both as well, and every gradient is reduced once.

    All in one reduction; but DDP's forward reduces the network's alone, so what learns beside it needs a second one.
    """
    sizes = count_reductions()
    for name in ONLINE:
        trainer = start(rank, folder, port, eager(name))
        trainer.network.register_comm_hook(None, allreduce_hook)  # what DDP does by itself, now seen
        before = [p.detach().clone() for p in trainer.network.parameters()]
        learning = [*trainer.network.parameters(), *(p for p in trainer.method.parameters() if p.requires_grad)]
        for _ in ten_steps(trainer):
            reduced = [size for size in sizes if size > 100]  # the others are sums over classes
            two = name == "nnUNetTrainerCPS" or trainer._stage.startswith("stage ii:")
            assert len(reduced) == 1 + two, (name, trainer._stage, reduced)
            assert sum(reduced) == sum(p.grad.numel() for p in learning if p.grad is not None), name
            sizes.clear()
        assert not all(map(torch.equal, before, trainer.network.parameters())), name
        assert_same_on_both(learning)
        del trainer, learning
        gc.collect()
    finish()


def train_action(rank: int, folder: str, port: int) -> None:
    """All stages of ACTION++; banks, queue, class means and centers are those of both processes together."""
    trainer = start(rank, folder, port, SmokePlusPlus)
    method, embeddings = trainer.method, []
    assert_same_on_both(method.state_dict().values())
    push = method.global_bank.push
    method.global_bank.push = lambda rows, usable: embeddings.append(rows) or push(rows, usable)
    for epoch in range(2):
        trainer.current_epoch, trainer._step_in_epoch = epoch, 0
        for _ in range(3):
            before = [p.detach().clone() for p in trainer.network.parameters()]
            trainer.train_step(next(trainer.dataloader_train))
            assert not all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
            assert_same_on_both([*trainer.network.parameters(), *method.state_dict().values()])
    assert trainer._stage.startswith("stage iii")

    everyones = [torch.empty_like(embeddings[0]) for _ in range(2)]
    dist.all_gather(everyones, embeddings[-1])
    assert torch.equal(method.global_bank.entries[:2], torch.cat(everyones).flip(0))
    assert method.global_bank.count == 2 * len(embeddings)

    sums, counts = torch.tensor([[1.0], [2.0]])[rank].expand(3, 18), torch.tensor([4, 0, 0 + rank])
    means, total = method._means(sums, counts)  # of 1 + 2 over 8, 0 and 1 voxels
    expected = method.represent(torch.tensor([3 / 8, 3.0, 3.0])[:, None].expand(3, 18))
    torch.testing.assert_close(means, expected)
    assert total.tolist() == [8, 0, 1]

    rows = gather_rows(torch.full((1 + 2 * rank, 2), float(rank)))  # batches may differ in size
    assert rows.tolist() == [[0, 0]] + 3 * [[1, 1]]
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.full((3,), float(rank))
    average_gradients([parameter, torch.nn.Parameter(torch.zeros(1))])
    assert parameter.grad.tolist() == [0.5] * 3
    del trainer, method
    finish()


class Watched(SmokeHalves):
    """What each process would decide by its own curves differs; the batches of both together are one validation."""

    epochs = 4
    better = (0.95, 0.5)  # the average's true positives on each process, over those of the network's 0.6

    def validation_step(self, batch):
        share = self.better[self.local_rank] if self.network is self.method.teacher.network else 0.6
        hits = np.array([100.0, 100.0]) * share
        return {"tp_hard": hits, "fp_hard": 100 - hits, "fn_hard": 100 - hits}


def turn_back(rank: int, folder: str, port: int) -> None:
    """Harm that the first process sees is turned back on both in the same epoch; both hand on the same network."""
    trainer = start(rank, folder, port, Watched)
    trainer.num_val_iterations_per_epoch = 30
    phases, learning = trainer.phases, list(trainer.network.parameters())
    began = [p.detach().clone() for p in learning]
    assert phases.readiness.started == 0
    for epoch in range(3):
        if epoch:
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
        assert phases.readiness.ended == (2 if epoch == 2 else None)
        went_back = all(map(torch.equal, began, learning))
        assert went_back == (epoch != 1)
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
        dice = 0.1 if (epoch, rank) == (1, 0) else 0.8
        trainer.logger.log("dice_per_class_or_region", [dice, dice], epoch)
        assert_same_on_both([*learning, *trainer.method.state_dict().values()])
        if epoch == 0:
            choose(trainer)
        trainer.current_epoch += 1
    del trainer, phases, learning
    finish()


class FromTheSecondEpoch(SmokeHalves):
    ready_at = 1


def switch(rank: int, folder: str, port: int) -> None:
    """What the first process decides by its own curves begins on both with the same step."""
    trainer = start(rank, folder, port, FromTheSecondEpoch)
    if rank:
        trainer.phases.readiness.at = None  # alone it would not begin
    for epoch in range(2):
        if epoch:
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
        assert trainer.method.started == (None, 0.5)[epoch]
        trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
        trainer.logger.log("dice_per_class_or_region", [0.8 - 0.8 * rank] * 2, epoch)
        assert_same_on_both([*trainer.network.parameters(), *trainer.method.state_dict().values()])
        trainer.current_epoch += 1
    del trainer
    finish()


def choose(trainer) -> None:
    """By the batches of both: the second process alone would keep the network."""
    network, average = trainer.network.module, trainer.method.teacher.network
    before = deepcopy(network.state_dict())
    trainer.phases.choose_network(trainer.dataloader_val)
    assert all(map(torch.equal, before.values(), network.state_dict().values())), "fold all asks nobody"
    trainer.fold = 0
    trainer.phases.choose_network(trainer.dataloader_val)
    assert all(map(torch.equal, average.parameters(), network.parameters()))
    trainer.fold = "all"
    network.load_state_dict(before)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.parametrize("work", [train, train_every, train_action, turn_back, switch])
def test_both_processes_hold_the_same_parameters_after_unlabeled_steps(dataset, work):
    port = 20000 + (os.getpid() + 7 * len(work.__name__)) % 20000
    mp.spawn(work, args=(str(dataset / "preprocessed" / DATASET), port), nprocs=2)
