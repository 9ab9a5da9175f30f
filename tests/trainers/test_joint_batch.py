"""Two processes with a sample each train as one process with both samples."""

import os
import random
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.networks.distributed import gather_rows
from nnunetv2_crossmatch.views.mixing import Partner
from tests.conftest import DATASET
from tests.trainers.conftest import EAGER, ONLINE, changed, start
from tests.trainers.processes import create, finish

STEPS = 4  # one in ACTION's stages i and ii, two in stage iii
SEEDS = (0, 100)  # rounding may turn a hard label round, and then the ways part; not with both
TOLERANCE = 1e-4  # of the way the parameters go; rounding is below 1e-5

# What cannot be the joint batch's is left out by these constants; all other terms of the trainer are compared.
DIFFERENT = {
    "nnUNetTrainerACTION": {"lambda_anco": 1e-9},  # queries and negatives are drawn from the process's own samples
    "nnUNetTrainerACTIONPlusPlus": {"lambda_anco": 1e-9, "lambda_aaco": 1e-9},  # as above
    "nnUNetTrainerBCP": {"pretrain": 0.99},  # later a batch of one has both mixtures, a batch of two one of each
}
# before self-training alone: one sample is not halved, two are
NOT_YET = {"nnUNetTrainerCrossMatch"}
# every voxel counts, so a mean over a process's voxels is one over as many as the other's; and all losses are seen
CONSTANTS = {name: {**EAGER, "weight": 10.0} for name in ONLINE}
CONSTANTS["nnUNetTrainerCrossMatch"]["weight"] = 1.0  # the largest it may have
CONSTANTS["nnUNetTrainerUAMT"]["threshold"] = 1.0  # of the entropy, which has to be below it


def trainer_class(name: str) -> type:
    cls = recursive_find_trainer_class_by_name(f"{name}_smoke")
    cls = changed(cls, **{**CONSTANTS[name], **DIFFERENT.get(name, {})})
    cls.epochs, cls.iterations_per_epoch = 1, STEPS
    if name in NOT_YET:
        cls.ready_at = 1
    return cls


def dice_of_each_sample(*arguments: torch.Tensor, **options: object) -> torch.Tensor:
    """Dice is no mean over samples: of processes with one each it is this mean, of the joint batch something else."""
    samples = zip(*(argument.split(1) for argument in arguments), strict=True)
    return torch.stack([masked_dice_loss(*sample, **options) for sample in samples]).mean()


def draw_for_all(patch: pytest.MonkeyPatch, rank: int, processes: int) -> None:
    """Every draw is made for all processes' samples in their order, and a process takes its own rows."""

    def rows_of(draw: Callable) -> Callable:
        def own_rows(own: torch.Tensor, *parameters: float) -> torch.Tensor:
            everyones = draw(own.new_empty(processes * len(own), *own.shape[1:]), *parameters)
            return own.copy_(everyones.chunk(processes)[rank])

        return own_rows

    for name in ("uniform_", "normal_", "bernoulli_", "exponential_"):
        patch.setattr(torch.Tensor, name, rows_of(getattr(torch.Tensor, name)))
    patch.setattr(torch, "rand", lambda *size, **options: torch.empty(*size, **options).uniform_())
    patch.setattr(torch, "randn_like", lambda like: torch.empty_like(like).normal_())
    patch.setattr(torch.distributions.Beta, "sample", lambda self: torch.empty_like(self.concentration1).uniform_())


class JointPartner(Partner):
    """Another sample of all processes' together."""

    def draw(self, batch: int) -> None:
        super().draw(dist.get_world_size() * batch)

    def of(self, name: str, values: torch.Tensor) -> torch.Tensor:
        everyones = gather_rows(values.float()).to(values.dtype)  # gloo does not know every type
        return everyones.roll(self._shift, 0).chunk(dist.get_world_size())[dist.get_rank()]


def weigh_outputs_as_in_ddp(trainer) -> None:
    """There nnU-Net gives the coarsest output, which otherwise has weight 0, a millionth of the finest one's."""
    weights = np.array(trainer.loss.weight_factors)
    weights[-1] = 1e-6 * weights[0]
    trainer.loss.weight_factors = tuple(weights / weights.sum())


def flat(parameters) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in parameters])


def ways(trainer, batches: list, seed: int) -> list[torch.Tensor]:
    """How far the steps move the network's parameters, and the method's own."""
    groups = [list(trainer.network.parameters()), trainer._own_parameters]
    before = [flat(group) for group in groups if group]
    if trainer.ready_at == 0:
        trainer.method.started = 0.0
    trainer.dataloader_unlabeled = iter([unlabeled for _, unlabeled in batches])
    for step, (labeled, _) in enumerate(batches):
        random.seed(seed + step)
        torch.manual_seed(seed + step)
        trainer.train_step(labeled)
    return [flat(group) - old for group, old in zip(filter(len, groups), before, strict=True)]


def own_part(value, rank: int):
    if isinstance(value, dict):
        return {key: own_part(item, rank) for key, item in value.items()}
    return [own_part(item, rank) for item in value] if isinstance(value, list) else value[rank : rank + 1]


def compare(rank: int, folder: str, port: int, file: str) -> None:
    joint = torch.load(file, weights_only=True)
    apart: dict[str, list[float]] = {}
    for name, seed, network, method, expected in joint["runs"]:
        trainer = create(rank, folder, port, trainer_class(name))
        trainer.initialize()
        trainer._plain_network.load_state_dict(network)
        trainer.method.load_state_dict(method)
        trainer.method.partner = JointPartner()
        with pytest.MonkeyPatch.context() as patch:
            draw_for_all(patch, rank, 2)
            went = ways(trainer, [tuple(own_part(part, rank) for part in batch) for batch in joint["batches"]], seed)
        distances = [(mine - theirs).norm() / theirs.norm() for mine, theirs in zip(went, expected, strict=True)]
        apart.setdefault(name, []).append(float(max(distances)))
        del trainer
    assert all(min(of_seeds) < TOLERANCE for of_seeds in apart.values()), apart
    finish()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")
def test_two_processes_go_the_way_of_one_with_the_joint_batch(dataset, make_trainer, monkeypatch, tmp_path):
    loaders = start(make_trainer(trainer_class(ONLINE[0]), "2d"))
    batches = []
    for _ in range(STEPS):
        labeled, unlabeled = next(loaders.dataloader_train), next(loaders.dataloader_unlabeled)
        everywhere_valid = {"data": unlabeled["data"], "target": torch.zeros_like(unlabeled["target"])}
        batches.append(({key: labeled[key] for key in ("data", "target")}, everywhere_valid))

    runs = []
    for name, seed in product(ONLINE, SEEDS):
        trainer = make_trainer(trainer_class(name), "2d")
        trainer.initialize()
        weigh_outputs_as_in_ddp(trainer)
        network, method = ({k: v.clone() for k, v in m.state_dict().items()} for m in (trainer.network, trainer.method))
        with monkeypatch.context() as patch:
            draw_for_all(patch, 0, 1)
            for module in ("crossmatch_paper", "unimatch", "bcp"):
                patch.setattr(f"nnunetv2_crossmatch.methods.{module}.masked_dice_loss", dice_of_each_sample)
            runs.append((name, seed, network, method, ways(trainer, batches, seed)))
    file = tmp_path / "joint.pth"
    torch.save({"batches": batches, "runs": runs}, file)
    port = 20000 + (os.getpid() + 3) % 20000
    mp.spawn(compare, args=(str(dataset / "preprocessed" / DATASET), port, str(file)), nprocs=2)
