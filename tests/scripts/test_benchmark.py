import argparse
import importlib.util
import json

import pytest
import torch

from tests.conftest import REPOSITORY, run

pytestmark = pytest.mark.slow

spec = importlib.util.spec_from_file_location("benchmark", REPOSITORY / "scripts" / "benchmark.py")
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_live_memory_counts_each_storage_once_and_forgets_it_when_it_is_gone():
    before = torch.ones(100)
    with benchmark.LiveMemory() as memory:
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
        with benchmark.LiveMemory() as memory:
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
        run(script, *line.split())
    return name


def parse(*trainers: str, configuration: str, plans: str, options: str = "--steps 0") -> argparse.Namespace:
    return benchmark.parse(f"-d 901 -c {configuration} -p {plans} {options} -tr {' '.join(trainers)}".split())


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_steps_stay_near_the_floor_and_within_their_limits(plans, configuration):
    names = ("nnUNetTrainerCrossMatchPaper", "nnUNetTrainerACTION", "nnUNetTrainerCrossMatch")
    arguments = parse(*names, configuration=configuration, plans=plans)
    results = benchmark.run(arguments)
    stock, crossmatch, action, default = (results[name] for name in ("nnUNetTrainer", *names))
    weights = sum(p.nbytes for p in benchmark.build(names[0], arguments).network.parameters())
    held = stock["peak_bytes"] - stock["step_bytes"]  # weights and momentum; one segmentation layer is never trained
    assert held == pytest.approx(2 * weights, rel=1e-3)
    assert action["peak_bytes"] - action["step_bytes"] > 3 * weights, "the teacher, heads and banks too"
    e, d = stock["encoder_flops"], stock["decoder_flops"]
    assert crossmatch["flops"] / stock["flops"] <= 1.02 * (12 * e + 22 * d) / (3 * e + 3 * d)
    # in 2D the gradients, which live from the first stream to the last, are most of so small a batch
    assert crossmatch["peak_bytes"] / stock["peak_bytes"] <= (1.2 if configuration == "3d_fullres" else 1.25)
    assert crossmatch["step_bytes"] / stock["step_bytes"] <= 1.3
    if configuration == "3d_fullres":  # in 2D the contrast's 512 channels weigh more than so small a network
        assert action["flops"] / stock["flops"] <= 2.6
        assert action["step_bytes"] / stock["step_bytes"] <= 1.5

    assert default["flops"] / stock["flops"] == pytest.approx(
        3.5 / 3, rel=0.01
    )  # half a batch more through the teacher
    assert default["peak_bytes"] / stock["peak_bytes"] <= 1.3  # the moving average is an eighth of so small a batch


def test_on_paper_a_step_is_as_in_mixed_precision(plans, monkeypatch):
    """What holds memory here the CPU's autocast runs in the same precision as CUDA's."""
    name = "nnUNetTrainerMeanTeacher"
    arguments = parse(name, configuration="3d_fullres", plans=plans, options="--steps 0 --device meta")
    on_paper = benchmark.run(arguments)
    arguments.device, arguments.synthetic = "cpu", True
    full = benchmark.run(arguments)
    half = lambda *_: torch.autocast("cpu", torch.float16)  # noqa: E731
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.dummy_context", half)
    monkeypatch.setattr("nnunetv2_crossmatch.trainers.semi_supervised.nullcontext", half)
    in_half = benchmark.run(arguments)
    for trainer in ("nnUNetTrainer", name):
        assert on_paper[trainer]["flops"] == full[trainer]["flops"]
        assert on_paper[trainer]["step_bytes"] == pytest.approx(in_half[trainer]["step_bytes"], rel=0.05)
        assert on_paper[trainer]["step_bytes"] < 0.7 * full[trainer]["step_bytes"]
    assert torch.ones(1).cpu().item() == 1, "everything is as before"


def test_times_waits_and_shares_are_measured_and_written(dataset, tmp_path, monkeypatch, capsys):
    out = tmp_path / "benchmark.json"
    line = f"-d 901 -p nnUNetPlansSmall --steps 3 --warm-up 1 --synthetic --out {out} -tr nnUNetTrainerFixMatch"
    monkeypatch.setattr("sys.argv", ["benchmark.py", *line.split()])
    benchmark.main()
    assert "nnUNetTrainerFixMatch" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["torch"] == torch.__version__ and written["settings"]["steps"] == 3
    for result in written["trainers"].values():
        assert sum(result["shares"].values()) == pytest.approx(1)
        assert {"backward", "forward", "optimizer", "waiting"} <= result["shares"].keys()
        assert min(result["shares"].values()) >= 0
        assert result["step_seconds"]["lower_quartile"] <= result["step_seconds"]["upper_quartile"]
    assert written["trainers"]["nnUNetTrainerFixMatch"]["shares"]["augmentation"] > 0


def test_whole_epochs_are_timed_with_their_waits(dataset, monkeypatch):
    smoke = "nnUNetTrainerCrossMatch_smoke"  # stock nnU-Net has no trainer with so short an epoch
    monkeypatch.setattr(benchmark, "STOCK", smoke)
    results = benchmark.run(parse(smoke, configuration="2d", plans="nnUNetPlansSmall", options="--epochs 1"))
    assert 0 < results[smoke]["waiting_share"] < 1
    assert results[smoke]["epoch_seconds"]["median"] == pytest.approx(3 * results[smoke]["step_seconds"]["median"])
    assert results[smoke]["batch_seconds"].keys() == {"dataloader_train", "dataloader_unlabeled"}
    assert len(list(benchmark.rows(results))) == 2


def test_epochs_of_a_trainer_that_waits_are_of_its_self_training(dataset, monkeypatch):
    waited = []
    wait = benchmark.TimedLoader.__next__
    monkeypatch.setattr(benchmark.TimedLoader, "__next__", lambda self: waited.append(self) or wait(self))
    monkeypatch.setattr(benchmark, "STOCK", "nnUNetTrainerCrossMatch_smoke")
    benchmark.run(parse(benchmark.STOCK, configuration="2d", plans="nnUNetPlansSmall", options="--epochs 1"))
    assert len(set(waited)) == 2, "labeled and unlabeled batches"
