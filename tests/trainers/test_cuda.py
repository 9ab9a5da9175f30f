"""One process with NCCL, or two, set up as ``nnUNetv2_train ... -num_gpus`` does; nothing is put right by hand."""

import gc
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import DATASET
from tests.trainers.conftest import ONLINE, start
from tests.trainers.processes import build, eager, finish, join, ten_steps


def train_every(rank: int, folder: str, port: int, processes: int) -> None:
    join(rank, port, "nccl", processes)
    torch.cuda.set_device(rank)
    for name in ONLINE:
        trainer = start(build(folder, eager(name)))
        assert trainer.device.type == "cuda" and isinstance(trainer.network, DistributedDataParallel)
        before = [p.detach().clone() for p in trainer.network.parameters()]
        assert np.isfinite(list(ten_steps(trainer))).all(), name
        assert not all(map(torch.equal, before, trainer.network.parameters())), name
        assert all(p.isfinite().all() for p in [*trainer.network.parameters(), *trainer.method.parameters()]), name
        del trainer
        gc.collect()
    finish()


@pytest.mark.gpu
@pytest.mark.parametrize("processes", [1, 2])
def test_every_trainer_takes_steps_with_nccl(dataset, processes):
    if torch.cuda.device_count() < processes:
        pytest.skip("needs a card for each process")
    port = 20000 + (os.getpid() + 5 + processes) % 20000
    mp.spawn(train_every, args=(str(dataset / "preprocessed" / DATASET), port, processes), nprocs=processes)
