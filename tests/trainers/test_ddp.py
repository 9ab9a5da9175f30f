"""Two processes on the CPU. nnU-Net's DDP takes CUDA for granted, so the device is put right by hand."""

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_crossmatch.trainers.curves import PREFIX
from tests.conftest import DATASET
from tests.trainers.test_semi_supervised import SmokeEMA


def train(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    stock.DDP = lambda network, device_ids: DistributedDataParallel(network)
    plans = json.loads((Path(folder) / "nnUNetPlansSmall.json").read_text())
    plans["configurations"]["2d"]["batch_size"] = 2  # one sample each: CutMix pastes the previous step's
    dataset_json = json.loads((Path(folder) / "dataset.json").read_text())
    np.random.seed(rank)
    torch.manual_seed(rank)
    trainer = SmokeEMA({**plans, "continue_training": False}, "2d", "all", dataset_json)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    before = [p.detach().clone() for p in trainer.network.parameters()]
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])

    assert trainer.batch_size == 1
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    for p in (*trainer.network.parameters(), *trainer.method.teacher.parameters()):
        everyones = [torch.empty_like(p) for _ in range(2)]
        dist.all_gather(everyones, p.detach())
        assert torch.equal(*everyones)
    assert trainer.logger.get_value(PREFIX + "gradient_norm_unlabeled", 0) > 0
    dist.barrier()
    del trainer  # gloo aborts if a reducer outlives its process group
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
def test_both_processes_hold_the_same_parameters_after_unlabelled_steps(dataset):
    port = 20000 + os.getpid() % 20000
    mp.spawn(train, args=(str(dataset / "preprocessed" / DATASET), port), nprocs=2)
