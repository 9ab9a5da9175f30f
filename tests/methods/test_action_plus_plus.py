import math
from dataclasses import replace

import pytest
import torch

from nnunetv2_crossmatch.losses.adaptive_contrast import simplex_centers
from nnunetv2_crossmatch.methods import action, action_plus_plus
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlus
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from tests.losses.slow import slow_adaptive_contrast
from tests.methods.conftest import PLUS_PLUS, STAGE_III, at, batches, make_action, step, unet


def make(network, progress=STAGE_III, constants=PLUS_PLUS) -> ACTIONPlusPlus:
    return make_action(network, progress, ACTIONPlusPlus, constants)


def test_the_temperature_is_one_period_of_a_cosine_over_stage_iii():
    method = make(unet())
    for done in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        method.begin_step(0.5 + 0.5 * done)
        assert method.temperature == pytest.approx(0.1 + 0.5 * (1 + math.cos(2 * math.pi * done)) * 0.9)
    assert make(unet(), 0.5).temperature == 1.0
    assert make(unet(), 0.75).temperature == pytest.approx(0.1)


def test_l_aaco_equals_the_definition_with_queue_means_and_assignment(monkeypatch):
    network = unet()
    method, (unlabeled, labeled) = make(network), batches()
    seen = []
    original = action_plus_plus.adaptive_contrast

    def contrast(queries, present, entries, known, centers, **kwargs):
        seen.append((queries.detach(), present, entries.clone(), known.clone(), centers, kwargs["temperature"]))
        return original(queries, present, entries, known, centers, **kwargs)

    monkeypatch.setattr(action_plus_plus, "adaptive_contrast", contrast)
    values = [step(method, network, unlabeled, labeled)["aaco"] for _ in range(3)]
    for value, (queries, present, entries, known, centers, temperature) in zip(values, seen, strict=True):
        everything = [t.double() for t in (queries, entries, centers)]
        expected = slow_adaptive_contrast(everything[0], present, everything[1], known, everything[2], temperature, 0.2)
        assert value == pytest.approx(expected, rel=1e-4)
    assert [int(known.sum()) for _, _, _, known, _, _ in seen] == [0, 18, 36]  # enqueued after the loss
    torch.testing.assert_close(method.queue.entries[:, :6], seen[2][0])
    assert all(torch.equal(c.sort(0)[0], simplex_centers(3, 512).sort(0)[0]) for *_, c, _ in seen)


def test_both_contrasts_have_the_temperature_of_the_moment(monkeypatch):
    network, seen = unet(), []
    for module, name in ((action, "regional_contrast"), (action_plus_plus, "adaptive_contrast")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, o=original, **kwargs: (seen.append(kwargs["temperature"]), o(*a, **kwargs))[1]
        )
    step(make(network, 0.6), network, *batches())
    expected = 0.1 + 0.45 * (1 + math.cos(2 * math.pi * 0.2))
    assert seen == pytest.approx([expected] * 2)


def test_each_class_gets_the_center_that_suits_its_mean_once_a_step(monkeypatch):
    network, seen = unet(), []
    method = make(network, constants=replace(PLUS_PLUS, mean_rate=1e-6))
    start, order = method.centers.clone(), torch.tensor([2, 0, 1])
    method.running.copy_(start[order])
    original = action_plus_plus.adaptive_contrast
    monkeypatch.setattr(
        action_plus_plus,
        "adaptive_contrast",
        lambda *a, **kwargs: (seen.append(a[4].clone()), original(*a, **kwargs))[1],
    )
    for progress in (0.0, STAGE_III, STAGE_III):  # nothing is assigned before stage iii
        method.begin_step(progress)
        step(method, network, *batches())
        method.after_step(network)
    assert torch.equal(seen[0], start) and torch.equal(seen[1], start[order])


def test_running_means_are_of_labeled_voxels_and_forget_at_their_rate():
    network = unet()
    method = make(network, constants=replace(PLUS_PLUS, mean_rate=0.25))
    expected = torch.zeros(3, 512)
    for seed, classes in enumerate([(0, 1), (0, 2), (0, 2)]):
        unlabeled, labeled = batches(seed=seed, classes=classes)
        step(method, network, unlabeled, labeled)
        with torch.no_grad():
            _, levels = SplitUNet(network).forward_levels(labeled.image)
            for c in classes:
                voxels = [at(levels, i, y, x) for i, _, y, x in (labeled.label == c).nonzero().tolist()]
                mean = method.represent(torch.stack(voxels)).mean(0)
                mean = mean / mean.norm()
                expected[c] = mean if not expected[c].any() else 0.75 * expected[c] + 0.25 * mean
    torch.testing.assert_close(method.running, expected, rtol=1e-3, atol=1e-5)


def test_weights_add_l_aaco_to_stage_iii_alone():
    method = make(unet())
    assert method.weights(0.5) == {"unsup": 1.0, "anco": 0.01, "aaco": 0.01}
    assert "aaco" not in {**method.weights(0.0), **method.weights(0.3)}


@pytest.mark.parametrize(("name", "value"), [("lowest_temperature", 0.0), ("mean_rate", 0.0), ("queue", 0)])
def test_a_constant_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        replace(PLUS_PLUS, **{name: value})
