"""A step where tensors neither mix with the CPU's nor give numbers away: what CUDA will do, seen without it.

torch's device ``meta`` has shapes and no values. A CPU tensor that slips in, an ``item()`` or a size that depends on
values raises, with its line.
"""

import math
import sys
from pathlib import Path

import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.trainers.conftest import EAGER, ONLINE, changed, noise, regions

META = torch.device("meta")
MEANT = {  # where the host waits for the device: of which trainers, and why there
    "semi_supervised.train_step": ("", "the loss at the end, as nnU-Net"),
    "components.keep_largest_components": ("BCP", "on the CPU as in its paper's code, before a student's graph"),
    "action.after_step": ("ACTION", "which teachers have stopped; the step is over and was waited for"),
    "adaptive_contrast.assign_centers": ("ACTIONPlusPlus", "the same"),
    "curves.pop": ("", "once an epoch"),
}
COPIES = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
}  # between devices: of batches, and what is meant
FROM_THE_CPU = {"semi_supervised._labeled_batch", "semi_supervised._method_backward", *MEANT}


def where() -> str:
    """The innermost function of the package that is running, as file.function."""
    frame = sys._getframe(1)
    while frame is not None:
        code, file = frame.f_code, frame.f_code.co_filename
        if "/nnunetv2_crossmatch/" in file and not code.co_name.startswith("<"):  # of a comprehension
            return f"{Path(file).stem}.{code.co_name}"
        frame = frame.f_back
    return "nobody"


class OneDevice(TorchDispatchMode):
    """No operation takes tensors of two devices: ``meta`` itself lets indexing and convolutions do so."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        copied = function in COPIES and where() in FROM_THE_CPU
        assert len(devices) < 2 or copied, f"{where()}: {function} of {devices}"
        return result


class NoLists(TorchFunctionMode):
    """No tensor is made of numbers: on CUDA the host waits until they are copied."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor):
            assert result.device.type == "cpu" or where() in FROM_THE_CPU, f"{where()}: {function.__name__}"
        return result


class Scaler(torch.amp.GradScaler):
    """As on CUDA, with its scale on the device; whether to take the step it asks there as stock nnU-Net's does."""

    def __init__(self):
        super().__init__("cpu")
        self._lazy_init_scale_growth_tracker(META)

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


@pytest.fixture
def waited(monkeypatch) -> set[str]:
    """The functions in which the host waited; there it is given ones."""
    functions = set()

    def wait(tensor: Tensor) -> Tensor:
        if tensor.device == META:
            assert where() in MEANT, f"{where()} waits for the device"
            functions.add(where())
        return torch.ones(tuple(tensor.shape), dtype=tensor.dtype)

    monkeypatch.setattr(Tensor, "cpu", wait)
    monkeypatch.setattr(Tensor, "__bool__", lambda tensor: wait(tensor).tolist() != 0)
    return functions


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_step_stays_on_the_device(make_trainer, monkeypatch, waited, name, configuration):
    cls = changed(recursive_find_trainer_class_by_name(f"{name}_smoke"), **EAGER)
    overlap = configuration == "2d" and cls.method_class.supports_regions
    trainer = make_trainer(cls, configuration, edit=regions if overlap else lambda *plans: None)
    trainer.device, trainer.grad_scaler = META, Scaler()
    trainer.initialize()
    # torch has none for this device
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda beta: torch.empty_like(beta.concentration1))
    method = trainer.method
    stages = sorted({0.0, *(start for start, _ in method.stages), 0.5})  # BCP's second begins when it is ready
    for ready in (False, True) if method.waits else (True,):
        method.started = 0.0 if ready else None
        method.taught = torch.ones(len(trainer._classes), dtype=torch.bool, device=META) if ready else None
        for progress in stages:
            trainer.current_epoch, trainer._step_in_epoch = divmod(math.ceil(6 * progress), 3)
            labeled, unlabeled = noise(trainer)
            trainer.dataloader_unlabeled = iter([unlabeled])
            with OneDevice(), NoLists():
                trainer.train_step(labeled)
    trainer._ratios.pop()
    assert waited == {function for function, (of, _) in MEANT.items() if of in name}
