import math
from dataclasses import asdict, replace

import pytest
import torch

from nnunetv2_crossmatch.losses.adaptive_contrast import simplex_centers
from nnunetv2_crossmatch.methods import action, action_plus_plus
from nnunetv2_crossmatch.methods.action import ACTIONConstants
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlus, ACTIONPlusPlusConstants
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from tests.losses.slow import slow_adaptive_contrast
from tests.methods.conftest import PLUS_PLUS, STAGE_I, STAGE_II, STAGE_III, at, batches, make_action, step, unet


def make(network, progress=STAGE_III, constants=PLUS_PLUS) -> ACTIONPlusPlus:
    return make_action(network, progress, ACTIONPlusPlus, constants)


def test_the_constants_are_the_published_ones():
    """Paper: arXiv 2304.02689. Code: charlesyou999648/ACTION, code/. The others are ACTION's."""
    assert asdict(ACTIONPlusPlusConstants()) == {
        **asdict(ACTIONConstants()),
        "temperature": 1.0,  # tau+, paper; temp_high, train_2D_action++.py
        "lowest_temperature": 0.1,  # tau-, paper; temp_low
        "lambda_aaco": 0.02,  # 2 x 0.01, train_2D_action++.py, which has 1/2 (CE + Dice)
        "lambda_center": 0.2,  # lambda_a, paper
        "queue": 12288,  # 256 x 3 x 4 x 4, train_2D_action++.py
        "mean_rate": 0.1,  # TSC.py
    }


def test_the_queue_is_shared_out_equally():
    assert ACTIONPlusPlus(ACTIONPlusPlusConstants(), unet(), patch=(16, 24)).queue.entries.shape == (3, 4096, 512)
    assert make(unet()).queue.entries.shape == (3, 12, 512)
    assert make(unet(), constants=replace(PLUS_PLUS, queue=2)).queue.entries.shape == (3, 1, 512)


def cosine(done: float, highest: float, lowest: float) -> float:
    return lowest + 0.5 * (1 + math.cos(2 * math.pi * done)) * (highest - lowest)


def test_the_temperature_is_one_period_of_a_cosine_over_stage_iii():
    method = make(unet())
    for done in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        method.begin_step(0.5 + 0.5 * done)
        assert method.temperature == pytest.approx(cosine(done, 0.9, 0.15))
    assert make(unet(), 0.5).temperature == 0.9
    assert make(unet(), 0.75).temperature == pytest.approx(0.15)


@pytest.mark.parametrize("start", [STAGE_I, 0.25])
@pytest.mark.parametrize("done", [0.0, 0.3, 0.5, 0.9])
def test_the_distillations_temperatures_go_down_and_up_in_each_of_its_stages(monkeypatch, start, done):
    network, seen = unet(), []
    original = action.similarity_distillation
    monkeypatch.setattr(
        action, "similarity_distillation", lambda *a, **kwargs: seen.append(kwargs) or original(*a, **kwargs)
    )
    step(make(network, start + 0.25 * done), network, *batches())
    assert len(seen) == (1 if start == STAGE_I else 2)
    for temperatures in seen:
        assert temperatures["student_temperature"] == pytest.approx(cosine(done, 0.9, 0.2))
        assert temperatures["teacher_temperature"] == pytest.approx(cosine(done, 0.9, 0.05))


def test_l_aaco_equals_the_definition_with_queue_means_and_assignment(monkeypatch):
    network = unet()
    method, (unlabeled, labeled) = make(network), batches()
    with torch.no_grad():  # a teacher's head that is not the student's
        for p in method.teacher_represent.parameters():
            p.add_(0.1 * torch.randn_like(p))
    seen, voxels = [], []
    original, draw = action_plus_plus.adaptive_contrast, action_plus_plus.draw_voxels

    def contrast(queries, present, entries, known, centers, **kwargs):
        seen.append((queries.detach(), present, entries.clone(), known.clone(), centers, kwargs["temperature"]))
        return original(queries, present, entries, known, centers, **kwargs)

    monkeypatch.setattr(action_plus_plus, "adaptive_contrast", contrast)
    monkeypatch.setattr(action_plus_plus, "draw_voxels", lambda *a: voxels.append(draw(*a)) or voxels[-1])
    values = [step(method, network, unlabeled, labeled)["aaco"] for _ in range(3)]
    for value, (queries, present, entries, known, centers, temperature) in zip(values, seen, strict=True):
        everything = [t.double() for t in (queries, entries, centers)]
        expected = slow_adaptive_contrast(everything[0], present, everything[1], known, everything[2], temperature, 0.3)
        assert value == pytest.approx(expected, rel=1e-4)
    assert [int(known.sum()) for _, _, _, known, _, _ in seen] == [0, 18, 36]  # enqueued after the loss
    assert all(torch.equal(c.sort(0)[0], simplex_centers(3, 512).sort(0)[0]) for *_, c, _ in seen)

    with torch.no_grad():
        _, students = SplitUNet(network).forward_levels(labeled.image)
        _, teachers = SplitUNet(method.teacher.network).forward_levels(labeled.image)
    for c, index in enumerate(voxels[6:]):  # of the last step
        for i, flat in enumerate(index.tolist()):
            sample, row, column = flat // (16 * 24), flat // 24 % 16, flat % 24
            assert labeled.label[sample, 0, row, column] == c
            student = method.represent(at(students, sample, row, column))
            teacher = method.teacher_represent.network(at(teachers, sample, row, column))
            torch.testing.assert_close(seen[2][0][c, i], student, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(method.queue.entries[c, i], teacher, rtol=1e-4, atol=1e-5)


def test_the_teachers_head_follows_in_stage_iii_and_never_learns(monkeypatch):
    network = unet()
    method = make(network, constants=replace(PLUS_PLUS, ema_decay=0.6))
    mine, theirs = method.teacher_represent.network.fuse.weight, method.represent.fuse.weight
    expected = mine.clone()
    for number, progress in enumerate((STAGE_I, STAGE_II, STAGE_III, STAGE_III, STAGE_III)):
        method.begin_step(progress)
        step(method, network, *batches())
        with torch.no_grad():
            theirs.add_(torch.randn_like(theirs))
        method.after_step(network)
        if number >= 2:
            decay = (0.0, 0.5, 0.6)[number - 2]  # the first copies
            expected = decay * expected + (1 - decay) * theirs.detach()
        torch.testing.assert_close(mine, expected)
    assert all(p.grad is None for p in method.teacher_represent.parameters())


def test_both_contrasts_and_the_draw_of_negatives_have_the_temperature_of_the_moment(monkeypatch):
    network, seen = unet(), []
    for module, name in ((action, "regional_contrast"), (action_plus_plus, "adaptive_contrast")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, o=original, **kwargs: (seen.append(kwargs["temperature"]), o(*a, **kwargs))[1]
        )
    classes = action.negative_classes
    monkeypatch.setattr(action, "negative_classes", lambda *a: seen.append(a[2]) or classes(*a))
    step(make(network, 0.6), network, *batches())
    assert seen == pytest.approx([cosine(0.2, 0.9, 0.15)] * 3)


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
    assert method.weights(0.5) == {"unsup": 2.0, "anco": 0.02, "aaco": 0.02}
    assert "aaco" not in {**method.weights(0.0), **method.weights(0.3)}


@pytest.mark.parametrize(("name", "value"), [("lowest_temperature", 0.0), ("mean_rate", 0.0), ("queue", 0)])
def test_a_constant_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        replace(PLUS_PLUS, **{name: value})
