"""A small network, batches for it, and a method's step; ACTION with few queries."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunetv2_crossmatch.methods import SUPERVISED, LabeledBatch, UnlabeledBatch
from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlusConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet

SPATIAL = (16, 24)
# no two alike, and none the default: a test sees one in the place of another
SMALL = {"queries": 6, "negatives": 7, "bank": 4, "valid": 0.35, "confident": 0.45, "hard": 0.38}
SMALL |= {"student_temperature": 0.2, "teacher_temperature": 0.05, "temperature": 0.3}
CONSTANTS = ACTIONConstants(**SMALL)
PLUS_PLUS = ACTIONPlusPlusConstants(
    **{**SMALL, "temperature": 0.9}, lowest_temperature=0.15, lambda_center=0.3, queue=36
)
STAGE_I, STAGE_II, STAGE_III = 0.0, 0.3, 0.6


def unet(seed: int = 0, features: tuple[int, ...] = (4, 6, 8)) -> nn.Module:
    torch.manual_seed(seed)
    return PlainConvUNet(
        1,
        n_stages=len(features),
        features_per_stage=features,
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=[1] + [2] * (len(features) - 1),
        n_conv_per_stage=1,
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


@pytest.fixture
def network() -> nn.Module:
    """Of three stages: of its two outputs only the finest has a weight."""
    return unet()


@pytest.fixture
def deep_network() -> nn.Module:
    """Of four stages: two of its three outputs have a weight."""
    return unet(features=(4, 6, 8, 8))


def batches(batch: int = 2, seed: int = 1, classes=(0, 1, 2)) -> tuple[UnlabeledBatch, LabeledBatch]:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.ones(batch, 1, *SPATIAL, dtype=torch.bool)
    valid[..., :2] = False
    image, other = torch.randn(2, batch, 1, *SPATIAL, generator=generator)
    label = torch.tensor(classes)[torch.randint(0, len(classes), (batch, 1, *SPATIAL), generator=generator)]
    label[:, :, :3] = 3  # nnU-Net's ignore label, past the last class

    def loss(outputs):
        return nn.functional.cross_entropy(outputs[0], label[:, 0], ignore_index=3)

    return UnlabeledBatch(image, valid), LabeledBatch(other, label, label != 3, loss)


def step(method, network: nn.Module, unlabeled, labeled) -> dict[str, float]:
    """Weighted gradients, and the sum of each loss."""
    weights, values = {SUPERVISED: 1.0, **method.weights(method.progress)}, {}
    for losses in method.losses(SplitUNet(network), unlabeled, labeled):
        sum(weights[name] * loss for name, loss in losses.items()).backward()
        for name, loss in losses.items():
            values[name] = values.get(name, 0.0) + loss.item()
        losses.clear()
    return values


def make_action(network: nn.Module, progress: float, cls=ACTION, constants=CONSTANTS) -> ACTION:
    torch.manual_seed(3)
    method = cls(constants, network, patch=SPATIAL)
    with torch.no_grad():  # a teacher and a student that differ
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    method.begin_step(progress)
    return method


def at(levels, sample, y, x) -> torch.Tensor:
    """The features of one voxel, of all levels together."""
    return torch.cat([v[sample, :, y // (16 // v.shape[2]), x // (16 // v.shape[2])] for v in levels])
