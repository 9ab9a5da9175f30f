"""torch.compile on the CPU, which nnU-Net leaves out there: what is compiled on CUDA, how often, and its numbers."""

import random
import shutil
from collections.abc import Iterator
from functools import partial, partialmethod

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from tests.trainers.conftest import SmokeHalves, noise, weights


def compiled(make_trainer, cls: type, backend: CompileCounterWithBackend):
    """Trainer whose network and halves the backend compiles."""
    always = {"_do_i_compile": lambda self: True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        patch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
        trainer = make_trainer(type(cls.__name__, (cls,), always), "2d")
        trainer.initialize()
    return trainer


def steps(trainer, count: int) -> Iterator[float]:
    """Losses: the first half in phase A, the others with half batches in phase B."""
    random.seed(0)
    torch.manual_seed(0)
    for step in range(count):
        labeled, unlabeled = noise(trainer)
        if step >= count // 2:
            trainer.method.started = 0.0
            labeled = {"data": labeled["data"][:1], "target": [t[:1] for t in labeled["target"]]}
            unlabeled = {key: values[:1] for key, values in unlabeled.items()}
        trainer.dataloader_unlabeled = iter([unlabeled])
        yield trainer.train_step(labeled)["loss"]


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
    graphs = [backend.frame_count for _ in steps(trainer, 10)]
    assert graphs == [2] * 5 + [6] * 5, "nothing is compiled again"
    assert not counters["graph_break"]
    trainer.network.eval()
    labeled, _ = noise(trainer)
    with torch.no_grad():
        for graphs_then in (8, 8):
            trainer.validation_step({key: labeled[key] for key in ("data", "target")})
            assert backend.frame_count == graphs_then, "nnU-Net's validation: its network and Dice, once"
    keys = [*trainer._plain_network.state_dict(), *trainer.method.state_dict()]
    assert not any("_orig_mod" in key for key in keys), "stock nnU-Net knows no such weights"


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler")
def test_inductor_computes_what_eager_mode_computes(make_trainer):
    plain = make_trainer(SmokeHalves, "2d")
    plain.initialize()
    fast = compiled(make_trainer, SmokeHalves, CompileCounterWithBackend("inductor"))
    fast._plain_network.load_state_dict(plain.network.state_dict())
    fast.method.load_state_dict(plain.method.state_dict())
    expected, ours = ([*steps(trainer, 6)] for trainer in (plain, fast))
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    for mine, theirs in zip(weights(fast), weights(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_without_nnunet_compile_nothing_is(make_trainer, monkeypatch):
    monkeypatch.setenv("nnUNet_compile", "f")
    trainer = make_trainer(SmokeHalves, "2d")
    trainer.device = torch.device("meta")  # the CPU is never compiled for
    trainer.initialize()
    assert not trainer._do_i_compile()
    halves = (trainer.network.encoder, trainer.network.decoder)
    assert all(half._compiled_call_impl is None for half in halves)
