"""One process with NCCL, or two, set up as ``nnUNetv2_train ... -num_gpus`` does; nothing is put right by hand.

Without a step's numbers to compare with, that they are finite, and with two cards that both hold the same weights.
"""

import gc
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import DATASET
from tests.trainers.conftest import ONLINE, start
from tests.trainers.processes import assert_same_on_both, build, eager, finish, join, ten_steps


def train(rank: int, folder: str, port: int, processes: int, name: str) -> None:
    join(rank, port, "nccl", processes)
    torch.cuda.set_device(rank)
    trainer = start(build(folder, eager(name)))
    assert trainer.device.type == "cuda" and isinstance(trainer.network, DistributedDataParallel)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    assert np.isfinite(list(ten_steps(trainer))).all()
    assert not all(map(torch.equal, before, trainer.network.parameters()))
    learned = [*trainer.network.parameters(), *trainer.method.parameters()]
    assert all(p.isfinite().all() for p in learned)
    if processes > 1:
        assert_same_on_both(learned)
    del trainer, learned
    gc.collect()
    finish()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("processes", [1, 2], ids=["one_card", "two_cards"])
def test_ten_steps_with_nccl(dataset, processes, name):
    if torch.cuda.device_count() < processes:
        pytest.skip("needs a card for each process")
    port = 20000 + (os.getpid() + 5 + processes) % 20000
    arguments = (str(dataset / "preprocessed" / DATASET), port, processes, name)
    mp.spawn(train, args=arguments, nprocs=processes)
