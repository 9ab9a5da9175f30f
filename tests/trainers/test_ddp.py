"""Two processes on the CPU. nnU-Net's DDP takes CUDA for granted, so the device is put right by hand."""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_crossmatch.networks.distributed import average_gradients, gather_rows
from nnunetv2_crossmatch.nnunet.logger import PREFIX
from tests.conftest import DATASET
from tests.trainers.test_action_trainers import SmokePlusPlus
from tests.trainers.test_contract import EAGER, ONLINE, changed
from tests.trainers.test_semi_supervised import SmokeEMA
from tests.trainers.test_semi_supervised import start as begin


def join(rank: int, port: int, backend: str = "gloo", processes: int = 2) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if not dist.is_initialized():
        dist.init_process_group(backend, rank=rank, world_size=processes)


def build(folder: str, cls: type):
    """A trainer with two samples a step in all processes together."""
    plans = json.loads((Path(folder) / "nnUNetPlansSmall.json").read_text())
    plans["configurations"]["2d"]["batch_size"] = 2
    dataset_json = json.loads((Path(folder) / "dataset.json").read_text())
    return cls({**plans, "continue_training": False}, "2d", "all", dataset_json)


def create(rank: int, folder: str, port: int, cls: type):
    """The trainer in its process; one sample each, so CutMix pastes the previous step's."""
    join(rank, port)
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    np.random.seed(rank)
    torch.manual_seed(rank)
    trainer = build(folder, cls)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    return trainer


def start(rank: int, folder: str, port: int, cls: type):
    trainer = begin(create(rank, folder, port, cls))
    assert trainer.batch_size == 1
    return trainer


def finish() -> None:
    dist.barrier()
    gc.collect()  # gloo aborts if a reducer outlives its process group
    dist.destroy_process_group()


def assert_same_on_both(values) -> None:
    for value in values:
        everyones = [torch.empty_like(value) for _ in range(2)]
        dist.all_gather(everyones, value.detach())
        assert torch.equal(*everyones)


def train(rank: int, folder: str, port: int) -> None:
    trainer = start(rank, folder, port, SmokeEMA)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert_same_on_both([*trainer.network.parameters(), *trainer.method.teacher.parameters()])
    assert trainer.logger.get_value(PREFIX + "gradient_norm_unlabeled", 0) > 0
    del trainer
    finish()


def ten_steps(trainer) -> Iterator[float]:
    """Through all stages, each step's loss."""
    for i in range(10):
        trainer.current_epoch, trainer._step_in_epoch = divmod(i * 6 // 10, 3)
        yield trainer.train_step(next(trainer.dataloader_train))["loss"]


def eager(name: str) -> type:
    """Its unlabeled losses act from the first step on."""
    return changed(recursive_find_trainer_class_by_name(f"{name}_smoke"), **EAGER, pretrain=0.5)


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


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.parametrize("work", [train, train_every, train_action])
def test_both_processes_hold_the_same_parameters_after_unlabeled_steps(dataset, work):
    port = 20000 + (os.getpid() + 7 * len(work.__name__)) % 20000
    mp.spawn(work, args=(str(dataset / "preprocessed" / DATASET), port), nprocs=2)
