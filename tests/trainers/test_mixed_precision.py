"""Mixed precision as on CUDA, with the CPU's autocast and gradient scaler."""

import math
import random
import sys
from functools import partial

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, autocast, nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnunetv2_crossmatch.losses.confident_cross_entropy import confident_cross_entropy
from nnunetv2_crossmatch.losses.deep_supervision import deeply_supervised
from nnunetv2_crossmatch.losses.dice_cross_entropy import dice_cross_entropy
from nnunetv2_crossmatch.losses.masked_cross_entropy import masked_cross_entropy
from nnunetv2_crossmatch.losses.masked_dice import masked_dice_loss
from nnunetv2_crossmatch.losses.masked_mse import masked_mse
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.networks.voxels import class_sums
from tests.trainers.conftest import EAGER, ONLINE, SmokeHalves, changed, noise, weights

HALF = (torch.float16, torch.bfloat16)
ROOMS = ("losses", "methods", "views")
OTHERS = ("crossmatch/networks/split_unet", "/nnunetv2/")  # autocast and nnU-Net decide there
REDUCTIONS = ("sum", "mean", "_softmax", "_log_softmax", "logsumexp", "mm", "addmm", "bmm")


class Float32(TorchDispatchMode):
    """Nothing is summed up in half precision by a loss or a method."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name, halves = function.__name__.partition(".")[0], []
        if name in REDUCTIONS:
            halves = [x for x in tree_leaves(result) if isinstance(x, Tensor) and x.dtype in HALF]
        frame = sys._getframe(1) if halves else None
        while frame is not None:
            file = frame.f_code.co_filename
            assert not any(f"crossmatch/{room}/" in file for room in ROOMS), f"{function} in {file}"
            frame = None if any(other in file for other in OTHERS) else frame.f_back
        return result


def in_precision(cls: type, precision: torch.dtype | None) -> type:
    return type(cls.__name__, (cls,), {"_autocast": lambda self: autocast("cpu", precision, precision is not None)})


def gradients(trainer, labeled: dict, unlabeled: dict) -> Tensor:
    """Of one step in the last stage, as the optimizer gets them."""
    if trainer.method.waits:
        trainer.method.started = 0.0
    last = trainer.method.stages[-1][0] if trainer.method.stages else 0.0
    trainer.current_epoch, trainer._step_in_epoch = divmod(math.ceil(6 * last), 3)
    trainer.dataloader_unlabeled = iter([{key: unlabeled[key].clone() for key in ("data", "target")}])
    random.seed(0)
    torch.manual_seed(0)
    trainer.train_step({"data": labeled["data"].clone(), "target": [t.clone() for t in labeled["target"]]})
    return torch.cat([p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", ONLINE)
def test_gradients_are_those_of_float32(make_trainer, name):
    cls = changed(recursive_find_trainer_class_by_name(f"{name}_smoke"), **EAGER)
    exact = make_trainer(in_precision(cls, None), "2d")
    exact.initialize()
    batches = noise(exact)
    network, method = ({k: v.clone() for k, v in m.state_dict().items()} for m in (exact.network, exact.method))
    expected = gradients(exact, *batches)
    # noise through 10 layers: rounding to 11 and 8 bits was seen to move them by up to 0.17 and 0.32
    for precision, tolerance in zip(HALF, (0.25, 0.45), strict=True):
        trainer = make_trainer(in_precision(cls, precision), "2d")
        trainer.initialize()
        trainer.network.load_state_dict(network)
        trainer.method.load_state_dict(method)
        trainer.grad_scaler = GradScaler("cpu", init_scale=2.0**10)
        with Float32():
            mine = gradients(trainer, *batches)
        assert trainer._ratios.pop()["skipped_share"] == 0
        assert (mine - expected).norm() < tolerance * expected.norm(), precision


def test_a_skipped_step_is_counted_and_a_continued_training_has_the_scale(make_trainer, tmp_path):
    cls = in_precision(SmokeHalves, torch.float16)
    trainer = make_trainer(cls, "2d")
    trainer.initialize()
    labeled, unlabeled = noise(trainer)
    trainer.dataloader_unlabeled, trainer.method.started = iter([unlabeled]), 0.0
    trainer.grad_scaler = GradScaler("cpu", init_scale=2.0**120)
    before, teacher = weights(trainer), trainer.method.teacher.updates.clone()
    trainer.train_step(labeled)
    assert trainer._ratios.pop()["skipped_share"] == 1
    assert all(map(torch.equal, before, weights(trainer))) and trainer.method.teacher.updates == teacher
    assert trainer.grad_scaler.get_scale() == 2.0**119
    file = str(tmp_path / "checkpoint_latest.pth")
    trainer.logger.log("train_losses", 0.0, 0)
    trainer.save_checkpoint(file)
    continued = make_trainer(cls, "2d")
    continued.grad_scaler = GradScaler("cpu")
    continued.load_checkpoint(file)
    assert continued.grad_scaler.state_dict() == trainer.grad_scaler.state_dict()


class Encoder(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]


class Decoder(nn.Conv3d):
    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(features[0])


class Constant(nn.Module):
    """Logits of an image's size, 0 and 2 everywhere."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder(1, 2, 1)
        self.decoder.bias.data = torch.tensor([0.0, 2.0])


def losses_of(edge: int) -> list[Tensor]:
    """Of constant tensors they do not depend on the size, unless a sum over the voxels is too large or too coarse."""
    network = SplitUNet(Constant(), lambda: autocast("cpu", torch.float16))
    image = torch.zeros(1, 1, *[edge] * 3)
    outputs, logits = network.outputs(image), network.logits(image)
    assert outputs.dtype == torch.float16
    label = torch.ones(1, 1, *[edge] * 3, dtype=torch.uint8)
    kept = label > 0
    losses = [
        masked_dice_loss(logits.softmax(1), label, kept),
        masked_mse(logits.softmax(1), torch.full_like(logits, 0.5), kept),
        masked_cross_entropy(logits, label, kept, kept),
        confident_cross_entropy(logits, label, torch.ones_like(label, dtype=torch.float32), kept, threshold=0.5),
        deeply_supervised(partial(dice_cross_entropy, batch_dice=True), outputs, label, kept.float()),
    ]
    torch.stack(losses).sum().backward()
    gradient = network.decoder.bias.grad
    assert gradient.isfinite().all() and gradient.any()
    return [loss.detach() for loss in losses]


def test_losses_of_a_large_patch_are_those_of_a_small_one():
    np.testing.assert_allclose(losses_of(128), losses_of(8), rtol=1e-4)


def test_sums_of_half_precision_features_over_a_large_patch_do_not_overflow():
    level = torch.full((1, 2, 128, 128, 128), 100.0, dtype=torch.float16)
    (sums,) = class_sums([level], [torch.ones(1, 1, 128, 128, 128, dtype=torch.bool)])
    np.testing.assert_allclose(sums, 100 * 128**3, rtol=1e-4)
