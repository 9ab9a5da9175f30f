"""torch.compile on the CPU, which nnU-Net leaves out there: what is compiled on CUDA, and how often."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.trainers.conftest import SmokeHalves, noise


def compiled(make_trainer, cls: type, backend: CompileCounterWithBackend):
    """Trainer whose network and halves the backend compiles."""
    always = {"_do_i_compile": lambda self: True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        trainer = make_trainer(type(cls.__name__, (cls,), always), "2d")
        trainer.initialize()
    return trainer


def steps(trainer, count: int) -> None:
    """The first half in phase A, the others with half batches in phase B."""
    for step in range(count):
        labeled, unlabeled = noise(trainer)
        if step >= count // 2:
            trainer.method.started = 0.0
            labeled = {"data": labeled["data"][:1], "target": [t[:1] for t in labeled["target"]]}
            unlabeled = {key: values[:1] for key, values in unlabeled.items()}
        trainer.dataloader_unlabeled = iter([unlabeled])
        trainer.train_step(labeled)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def test_few_graphs_through_both_phases(make_trainer):
    """Network and nnU-Net's Dice in phase A; encoder and decoder with gradients and, for the teacher, without in B."""
    backend = CompileCounterWithBackend("aot_eager")
    trainer = compiled(make_trainer, SmokeHalves, backend)
    steps(trainer, 10)
    assert backend.frame_count == 6
    assert not counters["graph_break"]
    keys = [*trainer._plain_network.state_dict(), *trainer.method.state_dict()]
    assert not any("_orig_mod" in key for key in keys), "stock nnU-Net knows no such weights"


def test_without_nnunet_compile_nothing_is(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = make_trainer(SmokeHalves, "2d")
    trainer.device = torch.device("meta")  # the CPU is never compiled for
    trainer.initialize()
    assert not trainer._do_i_compile()
    halves = (trainer.network.encoder, trainer.network.decoder)
    assert all(half._compiled_call_impl is None for half in halves)
