import argparse
import importlib.util

import pytest
import torch

from tests.conftest import REPOSITORY, run

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


def test_action_fine_tunes_within_its_limits(dataset):
    """A small but not tiny network: the contrast costs the same in every network."""
    plans = [
        "-d",
        "901",
        "-c",
        "3d_fullres",
        "-o",
        "nnUNetPlansCost",
        "--batch",
        "2",
        "--features",
        "8",
        "16",
        "32",
        "64",
    ]
    run("python", REPOSITORY / "scripts" / "small_plans.py", *plans, "--patch", "24", "32", "24")
    arguments = argparse.Namespace(d="901", c="3d_fullres", p="nnUNetPlansCost", at=0.5, set=[])
    step, memory, _, _ = cost.measure("nnUNetTrainer", arguments)
    ours, our_memory, _, _ = cost.measure("nnUNetTrainerACTION", arguments)
    assert ours / step <= 2.6
    assert our_memory / memory <= 2.2
