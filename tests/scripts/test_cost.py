import argparse
import importlib.util

import pytest
import torch

from tests.conftest import REPOSITORY, run

spec = importlib.util.spec_from_file_location("cost", REPOSITORY / "scripts" / "cost.py")
cost = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cost)


def test_live_memory_counts_each_storage_once_and_forgets_it_when_it_is_gone():
    before = torch.ones(100)
    with cost.LiveMemory() as memory:
        first = before + 1
        view = first[:50].reshape(5, 10)
        assert memory.peak == 400
        second = view * 2
        assert memory.peak == 600
        del first
        third = second + 1  # the view keeps the first one alive
        assert memory.peak == 800
        del view, second, third
        torch.zeros(100)
    assert memory.peak == 800


def test_live_memory_sees_what_a_checkpoint_computes_again():
    weight = torch.ones(100, requires_grad=True)
    peaks = []
    for economical in (False, True):
        with cost.LiveMemory() as memory:
            first = weight * 2
            chain = lambda x: x.sin().sin().sin().sin()  # noqa: E731
            y = torch.utils.checkpoint.checkpoint(chain, first, use_reentrant=False) if economical else chain(first)
            forward = memory.peak
            y.sum().backward()
        peaks.append((forward, memory.peak))
        weight.grad = None
    assert peaks[1][0] < peaks[0][0], "forward keeps less"
    assert peaks[1][1] >= 400 * 5, "and backward has all of it"


@pytest.fixture
def plans(dataset) -> str:
    """Of small but not tiny networks: images, masks and the contrast cost the same in every network."""
    script, name = REPOSITORY / "scripts" / "small_plans.py", "nnUNetPlansCost"
    for configuration, patch in (("2d", "64 64"), ("3d_fullres", "24 32 24")):
        line = f"-d 901 -c {configuration} -o {name} --features 16 32 64 128 --patch {patch} --batch 2"
        run("python", script, *line.split())
    return name


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_step_stays_near_the_floor(plans, configuration):
    arguments = argparse.Namespace(d="901", c=configuration, p=plans, at=0.5, set=[])
    step, memory, encoder, decoder = cost.measure("nnUNetTrainer", arguments)
    ours, our_memory, _, _ = cost.measure("nnUNetTrainerCrossMatch", arguments)
    floor = (12 * encoder + 22 * decoder) / (3 * encoder + 3 * decoder)
    assert ours / step <= 1.02 * floor
    assert our_memory / memory <= 1.3


def test_action_fine_tunes_within_its_limits(plans):
    arguments = argparse.Namespace(d="901", c="3d_fullres", p=plans, at=0.5, set=[])
    step, memory, _, _ = cost.measure("nnUNetTrainer", arguments)
    ours, our_memory, _, _ = cost.measure("nnUNetTrainerACTION", arguments)
    assert ours / step <= 2.6
    assert our_memory / memory <= 1.5
