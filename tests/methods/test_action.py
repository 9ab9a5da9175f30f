"""ACTION against a slow version, voxel by voxel, as the definitions read."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from nnunetv2_crossmatch.methods import SUPERVISED, UnlabeledBatch, action
from nnunetv2_crossmatch.methods.action import ACTION, ACTIONConstants
from nnunetv2_crossmatch.methods.action_plus_plus import ACTIONPlusPlus, ACTIONPlusPlusConstants
from nnunetv2_crossmatch.networks import voxels
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.views import strong_view
from tests.losses.slow import slow_regional_contrast, slow_similarity_distillation
from tests.methods.conftest import (
    CONSTANTS,
    PLUS_PLUS,
    SMALL,
    SPATIAL,
    STAGE_I,
    STAGE_II,
    STAGE_III,
    at,
    batches,
    step,
)
from tests.methods.conftest import make_action as make


def slow_distillation(student, teacher, entries) -> list[float]:
    return slow_similarity_distillation(*(t.double() for t in (student, teacher, entries)), 0.2, 0.05)


def test_the_constants_are_the_published_ones():
    """Paper: arXiv 2206.02307. Code: charlesyou999648/ACTION, code/. ReCo: lorenmt/reco, as in that code."""
    assert asdict(ACTIONConstants()) == {
        "stage_i": 0.25,  # 100 of 400 epochs, paper
        "stage_ii": 0.25,
        "lambda_global": 2.0,  # 2 x k1 of train_2D_pretrain.py, which has 1/2 (CE + Dice)
        "lambda_local": 2.0,  # 2 x k2
        "lambda_unsup": 2.0,  # 2 x 1, train_2D_action.py
        "lambda_anco": 0.02,  # 2 x k1 of train_2D_action.py
        "ema_decay": 0.99,  # m of ISD, both
        "bank": 36,  # K
        "student_temperature": 0.1,  # T_s, train_2D.sh
        "teacher_temperature": 0.01,  # T_t, train_2D.sh
        "cutmix": 0.5,  # paper
        "confident": 0.97,  # strong_threshold, train_2D_action.py
        "valid": 0.7,  # weak_threshold
        "hard": 0.97,  # strong_threshold, too
        "queries": 256,  # num_queries
        "negatives": 512,  # num_negatives
        "temperature": 0.5,  # temp, of the loss and of the draw of negatives
    }


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mask and indices of every draw of voxels: any of each class, then hard ones, of the unlabeled graph first."""
    draws = []
    original = voxels.draw_voxels

    def draw(mask, count):
        draws.append((mask, original(mask, count)))
        return draws[-1][1]

    monkeypatch.setattr(voxels, "draw_voxels", draw)
    return draws


def test_stage_iii_equals_the_definitions_voxel_by_voxel(network, monkeypatch, drawn):
    unlabeled, labeled = batches()
    method, mixed, negatives = make(network, STAGE_III), [], []
    mix, contrast = method._mix, action.regional_contrast
    monkeypatch.setattr(method, "_mix", lambda *args: mixed.append(mix(*args)) or mixed[-1])

    def contrasting(queries, hard, means, others, present, **kwargs):
        negatives.append((queries, others))
        return contrast(queries, hard, means, others, present, **kwargs)

    monkeypatch.setattr(action, "regional_contrast", contrasting)
    values = step(method, network, unlabeled, labeled)

    image, label, confidence, valid = mixed[0]
    graphs = []  # (levels, probabilities, label, voxels that take part), theirs first as the method draws
    with torch.no_grad():
        for x, y, counted in (
            (image, label, valid & (confidence >= 0.35)),  # CONSTANTS.valid
            (labeled.image, labeled.label, labeled.valid),
        ):
            outputs, levels = SplitUNet(network).forward_levels(x)
            graphs.append((levels, outputs[0].softmax(1), y, counted))
        members = [[], [], []]  # representations of the voxels of each class, labeled and unlabeled
        hard_ones = [[], [], []]
        for levels, p, y, counted in graphs:
            for sample, _, row, column in counted.nonzero().tolist():
                c = int(y[sample, 0, row, column])
                representation = method.represent(at(levels, sample, row, column))
                members[c].append(representation)
                if p[sample, c, row, column] < 0.38:  # CONSTANTS.hard
                    hard_ones[c].append(representation)
        means = torch.stack([torch.stack(m).mean(0) if m else torch.zeros(512) for m in members])
        of_draws = [mask.sum().item() for mask, _ in drawn]  # of each graph three classes' valid ones, then hard ones
        assert [a + b for a, b in zip(of_draws[:3], of_draws[6:9], strict=True)] == [len(m) for m in members]
        assert [a + b for a, b in zip(of_draws[3:6], of_draws[9:], strict=True)] == [len(h) for h in hard_ones]
        assert 0 < graphs[0][3].sum() < valid.sum()
        present = torch.tensor([bool(m) for m in members])

        queries, others = negatives[0]
        for c in range(3):  # every query is a hard voxel of its class, every negative a voxel of another class
            for q in queries[c] if hard_ones[c] else ():
                assert min((q - h).abs().max() for h in hard_ones[c]) < 1e-5
            for n in others[c]:
                assert min((n - m).abs().max() for v in range(3) if v != c for m in members[v]) < 1e-5
        hard = torch.tensor([bool(h) for h in hard_ones])
        assert hard.any()
        expected = slow_regional_contrast(queries.double(), hard, means.double(), others.double(), present, 0.3)
        supervised = labeled.loss([graphs[1][1].log()]).item()
    assert values["anco"] == pytest.approx(expected, rel=1e-4)
    assert values[SUPERVISED] == pytest.approx(supervised, rel=1e-5)

    expected = []
    for i in range(2):
        of_image = valid[i, 0]
        ce = -graphs[0][1][i].gather(0, label[i])[0][of_image].log().mean().item()
        expected.append((confidence[i, 0][of_image] >= 0.45).float().mean().item() * ce)  # CONSTANTS.confident
    assert values["unsup"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert len(drawn) == 12 and all(mask.flatten()[index].all() for mask, index in drawn if mask.any())


def test_the_kept_share_is_of_each_predicted_class_what_is_confident_and_not_padding(network):
    method, (unlabeled, labeled) = make(network, STAGE_III), batches()
    with torch.no_grad():
        p = method.teacher.network(unlabeled.image)[0].softmax(1)
    step(method, network, unlabeled, labeled)
    kept, all_of_them = method.curves["kept_share"]
    for c in range(3):
        of_class = [
            p[i, :, y, x].max() for i, _, y, x in unlabeled.valid.nonzero().tolist() if p[i, :, y, x].argmax() == c
        ]
        assert all_of_them[c] == len(of_class)
        assert kept[c] == sum(value >= 0.45 for value in of_class)
    assert 0 < kept.sum() < all_of_them.sum()


def test_the_mixed_view_follows_the_teachers_label_and_half_of_it_is_pasted(network, monkeypatch):
    method, (unlabeled, labeled) = make(network, STAGE_III), batches(batch=2)
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image)
    step(method, network, unlabeled, labeled)
    method.partner.draw(2)
    image, label, confidence, _ = method._mix(SplitUNet(network), unlabeled, unlabeled.image)
    with torch.no_grad():
        p = method.teacher.network(unlabeled.image)[0].softmax(1)
    whole = {"image": unlabeled.image, "confidence": p.max(1, keepdim=True)[0], "label": p.argmax(1, keepdim=True)}
    for i in range(2):
        own = (image == unlabeled.image)[i]
        assert own.float().mean().item() == pytest.approx(0.5, abs=0.08)
        for name, value in (("image", image), ("label", label), ("confidence", confidence)):
            assert torch.equal(value[i], torch.where(own, whole[name][i], whole[name][1 - i]))


@pytest.mark.parametrize("progress", [STAGE_I, STAGE_II, STAGE_III])
def test_who_gets_a_gradient_in_each_stage(network, progress):
    method, (unlabeled, labeled) = make(network, progress), batches()
    for _ in range(2):  # the first step finds empty banks
        network.zero_grad()
        method.zero_grad()
        step(method, network, unlabeled, labeled)

    def learns(module) -> bool:
        return any(p.grad is not None and p.grad.any() for p in module.parameters())

    stage = (STAGE_I, STAGE_II, STAGE_III).index(progress)
    teachers = (method.teacher, method.teacher_global, method.teacher_local)
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    assert learns(network.encoder)
    assert learns(network.decoder.stages) == (stage > 0)
    assert [learns(head) for head in (method.global_head, method.local_head, method.represent)] == [
        stage < 2,
        stage == 1,
        stage == 2,
    ]
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_l_anco_reaches_no_voxel_but_the_hard_ones_drawn_and_no_teacher(network, monkeypatch, drawn):
    method, (unlabeled, labeled) = make(network, STAGE_III), batches()
    maps = []
    forward_levels = SplitUNet.forward_levels

    def keep(self, image, **kwargs):
        outputs, levels = forward_levels(self, image, **kwargs)
        levels[0].retain_grad()  # feeds nothing but the logits and the contrast
        maps.append(levels[0])
        return outputs, levels

    monkeypatch.setattr(SplitUNet, "forward_levels", keep)
    next(iter(method.losses(SplitUNet(network), unlabeled, labeled)))["anco"].backward()
    assert len(maps) == 2
    for i, features in enumerate(maps):
        reached = features.grad.any(1).flatten().nonzero()[:, 0].tolist()
        queries = {int(v) for mask, index in drawn[6 * i + 3 : 6 * i + 6] if mask.any() for v in index}
        assert reached and set(reached) <= queries
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize(("cls", "constants"), [(ACTION, CONSTANTS), (ACTIONPlusPlus, PLUS_PLUS)])
def test_the_first_graph_is_economical_and_its_turn_comes_when_the_second_is_gone(network, monkeypatch, cls, constants):
    forward_levels, (unlabeled, labeled) = SplitUNet.forward_levels, batches()
    found = []
    for allowed in (True, False):
        method, asked, order = make(network, STAGE_III, cls, constants), [], []

        def forward(self, image, *, economical=False, asked=asked, allowed=allowed):
            if torch.is_grad_enabled():  # ACTION++'s teacher has no graph
                asked.append(economical)
            return forward_levels(self, image, economical=economical and allowed)

        monkeypatch.setattr(SplitUNet, "forward_levels", forward)

        def watch(module, inputs, output, order=order):
            if output.requires_grad:
                output.register_hook(lambda gradient: order.append("backward"))

        finest = network.encoder.stages[0]
        hooks = [
            finest.register_forward_pre_hook(lambda *_, order=order: order.append("forward")),
            finest.register_forward_hook(watch),
        ]
        torch.manual_seed(0)
        step(method, network, unlabeled, labeled)
        for hook in hooks:
            hook.remove()
        assert asked == [True, False]
        found.append(([p.grad.clone() for p in network.parameters() if p.grad is not None], order))
        network.zero_grad()
    (gradients, order), (expected, _) = found
    assert all(map(torch.equal, gradients, expected))
    assert order == ["forward", "forward", "backward", "backward", "forward"]


def test_a_class_that_no_pseudo_label_has_works(network):
    method, (unlabeled, labeled) = make(network, STAGE_III), batches()
    with torch.no_grad():
        method.teacher.network.decoder.seg_layers[-1].bias[1] = -100.0
    _, label, _, _ = method._mix(SplitUNet(network), unlabeled, unlabeled.image)
    assert not (label == 1).any()
    assert all(math.isfinite(value) for value in step(method, network, unlabeled, labeled).values())


def test_without_a_hard_voxel_l_anco_is_0_with_finite_gradients(network):
    constants = replace(CONSTANTS, hard=0.0)
    method, (unlabeled, labeled) = make(network, STAGE_III, constants=constants), batches()
    losses = next(iter(method.losses(SplitUNet(network), unlabeled, labeled)))
    losses["anco"].backward()
    assert losses["anco"] == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in [*network.parameters(), *method.parameters()])


def test_negatives_come_from_similar_classes_and_uniformly_from_both_graphs(network, monkeypatch):
    method = make(network, STAGE_III, constants=replace(CONSTANTS, negatives=4000))
    graphs = []
    for graph in range(2):  # tagged (class, graph), so that each negative tells where it is from
        tag = torch.zeros(3, 4000, 18)
        tag[..., 0], tag[..., 1] = torch.arange(3.0)[:, None], graph
        counts = torch.tensor([[100, 200, 300], [300, 200, 100]][graph])
        sums = counts[:, None] * torch.randn(3, 18, generator=torch.Generator().manual_seed(0))
        graphs.append(voxels.Voxels(tag, tag[:, :6], counts, counts, sums))
    seen = []
    method.represent = nn.Identity()
    original = action.regional_contrast
    monkeypatch.setattr(
        action, "regional_contrast", lambda q, h, m, n, p, **k: seen.append((m, n)) or original(q, h, m, n, p, **k)
    )
    torch.manual_seed(1)
    method._contrast(*graphs, [], None)
    means, negatives = seen[0]
    unit = nn.functional.normalize(means, dim=1)
    for c in range(3):
        others = [v for v in range(3) if v != c]
        weights = [math.exp(float(unit[c] @ unit[v]) / 0.3) for v in others]
        found = torch.bincount(negatives[c, :, 0].long(), minlength=3)[others]
        assert int(found.sum()) == 4000
        assert chisquare(found, [4000 * w / sum(weights) for w in weights]).pvalue > 0.001
        for v, share in ((0, 0.75), (1, 0.5), (2, 0.25)):  # of the second graph
            of_class = negatives[c][negatives[c, :, 0] == v]
            if v != c:
                assert of_class[:, 1].mean().item() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("cls", [ACTION, ACTIONPlusPlus])
@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 2), (1,)])
@pytest.mark.parametrize("batch", [1, 3])
def test_absent_classes_one_class_and_one_sample_work_in_every_stage(network, cls, classes, batch, monkeypatch):
    constants = {ACTION: ACTIONConstants, ACTIONPlusPlus: ACTIONPlusPlusConstants}[cls](**SMALL)
    if classes == (1,):
        constants = replace(constants, valid=1.0)  # and no unlabeled voxel joins in
    method = make(network, STAGE_I, cls, constants)
    for progress in (STAGE_I, STAGE_I, STAGE_II, STAGE_II, STAGE_III, STAGE_III):
        method.begin_step(progress)
        network.zero_grad()
        values = step(method, network, *batches(batch, classes=classes))
        method.after_step(network)
        assert all(map(math.isfinite, values.values()))
        assert all(p.grad.isfinite().all() for p in [*network.parameters(), *method.parameters()] if p.grad is not None)
        if classes == (1,) and progress == STAGE_III:
            assert values["anco"] == 0, "there is nothing to contrast with"


def test_distillation_starts_with_an_empty_bank_and_enqueues_after_the_loss(network):
    method, (unlabeled, labeled) = make(network, STAGE_II), batches()
    first, second = (step(method, network, unlabeled, labeled) for _ in range(2))
    assert set(first.values()) == {0.0} and min(second.values()) > 0
    assert method.global_bank.count == method.local_bank.count == 4
    with torch.no_grad():
        expected = method.teacher_global.network(method.teacher.network.encoder(unlabeled.image)[-1], unlabeled.valid)
    torch.testing.assert_close(method.global_bank.entries[:2], expected.flip(0))


@pytest.mark.parametrize("seed", [0, 1])
def test_stages_i_and_ii_equal_the_definitions(network, monkeypatch, seed):
    """Weak view to the teacher, strong view through head and predictor to the student, KL against the bank."""
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image.sin())
    method, (unlabeled, labeled) = make(network, STAGE_II), batches(seed=seed)
    step(method, network, unlabeled, labeled)  # fills the banks
    bank_global, bank_local = (b.entries[: b.count].clone() for b in (method.global_bank, method.local_bank))
    values = step(method, network, unlabeled, labeled)

    weak, valid, teacher = unlabeled.image, unlabeled.valid, method.teacher.network
    strong = torch.where(valid, weak.sin(), weak)
    with torch.no_grad():
        z_t = method.teacher_global.network(teacher.encoder(weak)[-1], valid)
        z_s = method.global_predictor(method.global_head(network.encoder(strong)[-1], valid))
        w_t, share = method.teacher_local.network(teacher(weak)[0], valid)
        w_s = method.local_predictor(method.local_head(network(strong)[0], valid)[0])
    expected = slow_distillation(z_s, z_t, bank_global)
    assert values["global"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    expected = slow_distillation(w_s.flatten(0, 1), w_t.flatten(0, 1), bank_local)
    weighted = sum(s * e for s, e in zip(share.flatten().tolist(), expected, strict=True))
    assert values["local"] == pytest.approx(weighted / share.sum().item(), rel=1e-3)


def test_a_patch_without_a_valid_voxel_counts_in_no_distillation_and_enters_no_bank(network):
    unlabeled, _ = batches(batch=3)
    unlabeled.valid[1] = False
    kept = [0, 2]
    alone = UnlabeledBatch(unlabeled.image[kept], unlabeled.valid[kept])
    found = []
    for batch in (unlabeled, alone):
        method = make(network, STAGE_II)
        torch.manual_seed(0)  # for the strong view of the first step, which only fills the banks
        method.global_bank.push(torch.randn(4, 512), torch.ones(4, dtype=torch.bool))
        channels = method.local_bank.entries.shape[1]
        method.local_bank.push(torch.randn(4, channels), torch.ones(4, dtype=torch.bool))
        view = batch.image.cos()
        with torch.no_grad():
            losses = method._distill(SplitUNet(network), batch, view, local=True)
        found.append((*(loss.item() for loss in losses.values()), method.global_bank.entries, method.local_bank))
    assert found[0][:2] == pytest.approx(found[1][:2]) and min(found[0][:2]) > 0
    torch.testing.assert_close(found[0][2], found[1][2])  # two new ones, two that were there
    method.local_bank.entries.zero_()
    assert not torch.equal(found[0][3].entries[1], found[0][3].entries[2])


def test_of_each_patch_one_window_enters_the_bank_drawn_by_its_valid_share(network, monkeypatch):
    method, (unlabeled, _) = make(network, STAGE_II), batches(batch=3)
    pushed, share = [], torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75], [0.0, 0.0, 0.0]])
    windows = torch.arange(9.0).reshape(3, 3, 1).expand(-1, -1, method.local_head.channels)
    monkeypatch.setattr(method.teacher_local.network, "forward", lambda *_: (windows, share))
    monkeypatch.setattr(method, "_similarity", lambda bank, student, teacher: torch.zeros(len(teacher)))
    monkeypatch.setattr(method.local_bank, "push", lambda rows, usable: pushed.append((rows[:, 0], usable)))
    for _ in range(60):
        with torch.no_grad():
            method._distill(SplitUNet(network), unlabeled, unlabeled.image, local=True)
    assert all(usable.tolist() == [True, True, False] for _, usable in pushed)
    drawn = torch.stack([rows for rows, _ in pushed])
    assert (drawn[:, 0] == 1).all() and set(drawn[:, 1].tolist()) == {3.0, 5.0}
    assert (drawn[:, 1] == 5).float().mean().item() == pytest.approx(0.75, abs=0.18)


def test_the_student_of_stage_iii_sees_the_strong_view(network, monkeypatch):
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image.sin())
    unlabeled, labeled = batches()
    monkeypatch.setattr(action, "draw_boxes", lambda *args, **kwargs: torch.zeros_like(unlabeled.valid))
    method, seen = make(network, STAGE_III), []
    network.encoder.stages[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(method, network, unlabeled, labeled)
    strong = torch.where(unlabeled.valid, unlabeled.image.sin(), unlabeled.image)
    assert torch.equal(seen[0], strong)


@pytest.mark.parametrize(("cls", "constants"), [(ACTION, CONSTANTS), (ACTIONPlusPlus, PLUS_PLUS)])
@pytest.mark.parametrize("progress", [STAGE_I, STAGE_II, STAGE_III])
def test_a_step_that_overflows_leaves_no_trace_in_banks_queue_and_means(network, cls, constants, progress):
    method = make(network, progress, cls, constants)
    unlabeled, labeled = batches()
    spoiled, image = unlabeled.image.clone(), labeled.image.clone()
    spoiled[..., 5, 5] = image[..., 5, 5] = torch.inf
    remembered = ("bank", "queue", "running")
    for _ in range(2):
        before = {k: v.clone() for k, v in method.state_dict().items() if any(name in k for name in remembered)}
        step(method, network, replace(unlabeled, image=spoiled), replace(labeled, image=image))
        after = method.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items()), "first and later"
        step(method, network, unlabeled, labeled)
    network.zero_grad()
    values = step(method, network, unlabeled, labeled)
    assert all(math.isfinite(value) for value in values.values())


def test_padded_voxels_do_not_count_in_the_pseudo_label_loss(network, monkeypatch):
    """Whatever the padded columns predict."""
    monkeypatch.setattr(strong_view, "apply_strong", lambda image, drawn, voxel: image)
    unlabeled, labeled = batches()
    forward_levels = SplitUNet.forward_levels
    values = []
    for noise in (0.0, 100.0):

        def spoiled(self, image, *, noise=noise, **kwargs):
            outputs, levels = forward_levels(self, image, **kwargs)
            first_class = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
            return [outputs[0] + noise * first_class * ~unlabeled.valid, *outputs[1:]], levels

        monkeypatch.setattr(SplitUNet, "forward_levels", spoiled)
        method = make(network, STAGE_III, constants=replace(CONSTANTS, lambda_anco=0.0))
        monkeypatch.setattr(action, "draw_boxes", lambda *args, **kwargs: torch.zeros_like(unlabeled.valid))
        values.append(step(method, network, unlabeled, labeled)["unsup"])
    assert values[0] == pytest.approx(values[1]) and values[0] > 0


def test_the_teacher_follows_with_all_its_heads_once_a_step(network):
    method, (unlabeled, labeled) = make(network, STAGE_II), batches()
    optimizer = torch.optim.SGD([*network.parameters(), *(p for p in method.parameters() if p.requires_grad)], 0.1)
    pairs = [
        (method.teacher, network),
        (method.teacher_global, method.global_head),
        (method.teacher_local, method.local_head),
    ]
    for _ in range(3):
        step(method, network, unlabeled, labeled)
        optimizer.step()
        before = [[p.clone() for p in teacher.network.parameters()] for teacher, _ in pairs]
        method.after_step(network)
    for olds, (teacher, student) in zip(before, pairs, strict=True):
        assert teacher.updates == 3
        for old, mine, theirs in zip(olds, teacher.network.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(mine, old * 2 / 3 + theirs / 3)


def test_the_teacher_of_stage_iii_begins_as_the_student_and_then_follows(network):
    """In a run that was continued between any two steps, too."""
    method = make(network, STAGE_II)
    for _ in range(120):  # until the average has its decay
        method.after_step(network)
    (of_head,) = (v.clone() for k, v in method.teacher_global.state_dict().items() if k == "updates")
    student = list(network.parameters())
    for number in range(4):
        with torch.no_grad():
            for p in student:
                p.add_(torch.randn_like(p))
        before = [p.clone() for p in method.teacher.network.parameters()]
        continued = ACTION(CONSTANTS, network, patch=SPATIAL)
        continued.load_state_dict(method.state_dict())
        for one in (method, continued):
            one.begin_step(STAGE_II if number == 0 else STAGE_III)
            one.after_step(network)
        for old, mine, others, theirs in zip(
            before, method.teacher.network.parameters(), continued.teacher.network.parameters(), student, strict=True
        ):
            expected = theirs if number == 1 else 0.99 * old + 0.01 * theirs
            torch.testing.assert_close(mine, expected)
            assert torch.equal(mine, others)
            assert number != 1 or torch.equal(mine, theirs)
    assert method.teacher_global.updates == of_head + 1  # the heads learn nothing in stage iii


@pytest.mark.parametrize(
    ("progress", "done"),
    [(0.0, 0.0), (0.05, 0.25), (0.2, 0.0), (0.35, 0.5), (0.5, 0.0), (0.75, 0.5), (0.999, 0.998), (1.0, 1.0)],
)
def test_what_is_done_of_a_stage(progress, done):
    assert replace(CONSTANTS, stage_i=0.2, stage_ii=0.3).stage_done(progress) == pytest.approx(done)


def test_a_stage_without_steps_is_never_the_present_one():
    assert replace(CONSTANTS, stage_i=0.0, stage_ii=0.5).stage_done(0.25) == 0.5
    assert replace(CONSTANTS, stage_i=0.5, stage_ii=0.0).stage_done(0.5) == 0.0
    assert replace(CONSTANTS, stage_i=0.0, stage_ii=0.0).stage_done(0.25) == 0.25
    assert replace(CONSTANTS, stage_i=0.5, stage_ii=0.5).stage_done(1.0) == 1.0


def test_weights_and_stages_follow_the_progress(network):
    method = make(network, 0.0)
    assert method.weights(0.0) == {SUPERVISED: 0.0, "global": 2.0}
    assert method.weights(0.2499) == method.weights(0.0)
    assert method.weights(0.25) == {"global": 2.0, "local": 2.0}
    assert method.weights(0.5) == {"unsup": 2.0, "anco": 0.02}
    assert [start for start, _ in method.stages] == [0.0, 0.25, 0.5]
    supervised_first = make(network, 0.0, constants=replace(CONSTANTS, stage_i=0.0)).stages
    assert [(start, name[:9]) for start, name in supervised_first] == [(0.0, "stage ii:"), (0.25, "stage iii")]
    off = {name: 0.0 for name in ("lambda_global", "lambda_local", "lambda_unsup", "lambda_anco")}
    nothing = make(network, 0.0, constants=replace(CONSTANTS, **off))
    for progress in (STAGE_I, STAGE_II, STAGE_III):
        weights = nothing.weights(progress)
        assert weights.pop(SUPERVISED, 1.0) == 1.0 and not any(weights.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stage_i", 1.5),
        ("ema_decay", 1.0),
        ("cutmix", 0.0),
        ("queries", 0),
        ("temperature", 0.0),
        ("lambda_anco", -1.0),
    ],
)
def test_a_constant_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
        replace(CONSTANTS, **{name: value})
    with pytest.raises(ValueError, match=r"stage_i and stage_ii .* 0.7 and 0.6"):
        replace(CONSTANTS, stage_i=0.7, stage_ii=0.6)


def test_a_network_without_levels_is_refused_before_training(network):
    network.decoder.seg_layers, network.decoder.heads = None, network.decoder.seg_layers
    del network.decoder.seg_layers
    with pytest.raises(TypeError, match="PlainConvUNet's decoder has no seg_layers"):
        ACTION(CONSTANTS, network, patch=SPATIAL)
    del network.encoder.stages
    with pytest.raises(TypeError, match="PlainConvUNet's encoder has no stages"):
        ACTION(CONSTANTS, network, patch=SPATIAL)
