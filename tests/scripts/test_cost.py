import argparse
import importlib.util

import pytest
import torch

from tests.conftest import REPOSITORY

spec = importlib.util.spec_from_file_location("cost", REPOSITORY / "scripts" / "cost.py")
cost = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cost)


def test_saved_for_backward_counts_each_storage_once_and_releases_it():
    weight = torch.nn.Parameter(torch.ones(100))
    network = torch.nn.ParameterList([weight])
    x = torch.ones(100, requires_grad=True)
    with cost.SavedForBackward(network) as meter:
        first = (x * x) * weight  # saves x (twice) and x * x: 2 storages of 400 bytes, the weight not
        assert meter.peak == 800
        first.sum().backward()
        (x * x).sum().backward()
    assert meter.peak == 800


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_step_stays_near_the_floor(dataset, configuration):
    arguments = argparse.Namespace(d="901", c=configuration, p="nnUNetPlansSmall", at=0.5, set=[])
    step, memory, encoder, decoder = cost.measure("nnUNetTrainer", arguments)
    ours, our_memory, _, _ = cost.measure("nnUNetTrainerCrossMatch", arguments)
    floor = (12 * encoder + 22 * decoder) / (3 * encoder + 3 * decoder)
    assert ours / step <= 1.05 * floor
    assert our_memory / memory <= 1.25
