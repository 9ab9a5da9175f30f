"""A trainer in each of several processes on the CPU.

nnU-Net's DDP takes CUDA for granted, so the device is put right by hand.
"""

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch.nn.parallel import DistributedDataParallel

from tests.trainers import conftest
from tests.trainers.conftest import EAGER, changed


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
    trainer = conftest.start(create(rank, folder, port, cls))
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


def ten_steps(trainer) -> Iterator[float]:
    """Through all stages, each step's loss."""
    for i in range(10):
        trainer.current_epoch, trainer._step_in_epoch = divmod(i * 6 // 10, 3)
        yield trainer.train_step(next(trainer.dataloader_train))["loss"]


def eager(name: str) -> type:
    """Its unlabeled losses act from the first step on."""
    return changed(recursive_find_trainer_class_by_name(f"{name}_smoke"), **EAGER, pretrain=0.5)
