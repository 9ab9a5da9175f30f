from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nnunetv2_crossmatch.nnunet.logger import PREFIX
from nnunetv2_crossmatch.trainers.hidden_labels import SCANS, HiddenLabels
from tests.conftest import DATASET, ball, write_image


class Ring(nn.Module):
    """Calls a voxel the core where the image is brightest, the shell where it is bright; counts its calls."""

    def forward(self, image):
        assert not self.training
        bright = image[:, 0]
        return [torch.stack((torch.zeros_like(bright), bright - 0.5, 2 * bright - 2.5), 1)]


@pytest.fixture
def hidden(dataset):
    """Labels of the unlabeled scans: those of the generator that drew them."""
    raw = dataset / "raw" / DATASET
    rng = np.random.default_rng(0)
    labels = [ball(rng)[1] for _ in range(9)][5:]
    for i, label in enumerate(labels):
        write_image(label, raw / "labelsUn" / f"scan{i}.nii.gz")
    return raw


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_dice_is_that_of_the_patches_together(hidden, make_trainer, configuration):
    trainer = make_trainer("nnUNetTrainerCrossMatch_smoke", configuration)
    files = {f"scan{i}": [hidden / "imagesUn" / f"scan{i}_0000.nii.gz"] for i in range(SCANS)}
    labels = HiddenLabels.read(trainer.planned, files, torch.device("cpu"))
    assert len(labels) == SCANS
    network = Ring().train()
    found = labels.dice(network)
    assert network.training
    predicted, truth = [], []
    for image, label in labels._patches:
        assert tuple(label.shape) == tuple(trainer.configuration_manager.patch_size)
        bright = image[0].numpy()
        predicted.append(np.select([(bright > 2) & (bright > 1.25), bright > 0.5], [2, 1]))
        truth.append(label.numpy())
    predicted, truth = np.stack(predicted), np.stack(truth)
    dices = []
    for c in (1, 2):
        a, b = (predicted == c) & (truth >= 0), truth == c
        assert b.any()
        dices.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found == pytest.approx(np.mean(dices)) and found > 0.3


def test_image_and_label_are_cut_at_the_same_place(hidden, make_trainer):
    """The generator makes label 2 brightest, so the image tells where the label has to be."""
    trainer = make_trainer("nnUNetTrainerCrossMatch_smoke")
    files = {"scan1": [hidden / "imagesUn" / "scan1_0000.nii.gz"]}
    ((image, label),) = HiddenLabels.read(trainer.planned, files, torch.device("cpu"))._patches
    means = [image[0][label == c].mean() for c in (0, 1, 2)]
    assert means[0] + 0.5 < means[1] < means[2] - 0.5


def train(make_trainer, **options):
    trainer = make_trainer("nnUNetTrainerCrossMatch_smoke", **options)
    trainer.run_training()
    return trainer


def test_a_training_is_the_same_with_and_without_them(hidden, make_trainer):
    with_labels = train(make_trainer)
    curve = with_labels.logger.get_value(PREFIX + "pseudo_label_dice", step=None)
    assert len(curve) == 2 and all(0 <= value <= 1 for value in curve)
    for file in (hidden / "labelsUn").iterdir():
        file.unlink()
    without = train(make_trainer)
    assert PREFIX + "pseudo_label_dice" not in without.logger.local_logger.my_fantastic_logging
    for name, value in with_labels.network.state_dict().items():
        assert torch.equal(value, without.network.state_dict()[name]), name


def test_a_broken_label_costs_the_curve_and_not_the_training(hidden, make_trainer):
    (hidden / "labelsUn" / "scan0.nii.gz").write_bytes(b"no image")
    trainer = train(make_trainer)
    assert trainer.current_epoch == 2
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert "warning: no curve of the pseudo-labels' Dice" in log
