"""torch.compile on the CPU, which nnU-Net leaves out there: what is compiled on CUDA, and how often."""

import random
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.trainers.conftest import Smoke, SmokeHalves, noise, weights


def compiled(make_trainer, cls: type, backend):
    """Trainer whose network and halves the backend compiles."""
    always = {"_do_i_compile": lambda self: True}
    with pytest.MonkeyPatch.context() as patch:
        real, module = torch.compile, torch.nn.Module.compile
        patch.setattr(torch, "compile", lambda function: real(function, backend=backend))
        patch.setattr(torch.nn.Module, "compile", lambda self: module(self, backend=backend))
        trainer = make_trainer(type(cls.__name__, (cls,), always), "2d")
        trainer.initialize()
    return trainer


def steps(trainer, count: int) -> list[float]:
    """Losses; the first half in phase A, where the method has one."""
    torch.manual_seed(0)
    random.seed(0)
    losses = []
    for step in range(count):
        labeled, unlabeled = noise(trainer)
        if trainer.method.waits and step == count // 2:
            trainer.method.started = 0.0
        if trainer.method.waits and step >= count // 2:
            labeled = {"data": labeled["data"][:1], "target": [t[:1] for t in labeled["target"]]}
            unlabeled = {key: values[:1] for key, values in unlabeled.items()}
        trainer.dataloader_unlabeled = iter([unlabeled])
        losses.append(float(trainer.train_step(labeled)["loss"]))
    return losses


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_each_part_is_compiled_once_through_both_phases(make_trainer):
    """The network for phase A; encoder and decoder of student and teacher for phase B."""
    backend = CompileCounterWithBackend("aot_eager")
    trainer = compiled(make_trainer, SmokeHalves, backend)
    steps(trainer, 10)
    print("COUNTS", backend.frame_count, dict(counters["stats"]), dict(counters["graph_break"]), dict(counters["recompiles"]))
    assert backend.frame_count == 5
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductors_network_goes_the_way_of_the_eager_one(make_trainer):
    eager = make_trainer(SmokeHalves, "2d")
    eager.initialize()
    trainer = compiled(make_trainer, SmokeHalves, "inductor")
    assert trainer._plain_network.state_dict().keys() == eager.network.state_dict().keys()
    assert trainer.method.state_dict().keys() == eager.method.state_dict().keys()
    trainer._plain_network.load_state_dict(eager.network.state_dict())
    trainer.method.load_state_dict(eager.method.state_dict())
    assert steps(trainer, 4) == pytest.approx(steps(eager, 4), rel=1e-3)


def test_without_nnunet_compile_nothing_is(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = make_trainer(SmokeHalves, "2d")
    trainer.device = torch.device("meta")  # the CPU is never compiled for
    trainer.initialize()
    assert not trainer._do_i_compile()
    halves = (trainer.network.encoder, trainer.network.decoder)
    assert all(half._compiled_call_impl is None for half in halves)
