import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.nnunet.logger import PREFIX, log_curves
from nnunetv2_crossmatch.trainers.curves import EpochRatios, plot_curves

CPU = torch.device("cpu")
CLASSES = ["0", "1"]


def test_sums_are_divided_once_and_the_next_epoch_starts_empty():
    ratios = EpochRatios()
    ratios.add({"loss": (torch.tensor(1.0), 1), "share": (torch.tensor([1, 0, 0]), torch.tensor([2, 4, 0]))}, CPU)
    ratios.add({"loss": (torch.tensor(2.0), 1), "share": (torch.tensor([2, 1, 0]), torch.tensor([2, 4, 0]))}, CPU)
    popped = ratios.pop()
    assert popped["loss"] == 1.5
    np.testing.assert_array_equal(popped["share"], [0.75, 0.125, np.nan])
    assert ratios.pop() == {}


def test_a_step_that_overflowed_does_not_count():
    ratios = EpochRatios()
    for value in (3.0, float("inf"), float("nan"), 5.0):
        ratios.add({"norm": (torch.tensor(value), 1)}, CPU)
    assert ratios.pop() == {"norm": 4.0}


def test_stages_are_lines_in_every_panel_and_named_in_the_first(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("nnunetv2_crossmatch.trainers.curves.plt.close", figures.append)
    logger = MetaLogger(str(tmp_path), False)
    for epoch in range(4):
        log_curves(logger, {"loss_a": 1.0, "clipped_share": 0.0}, epoch, CLASSES)
    plot_curves(logger, tmp_path / "curves.png", ["background"], [(0, "i"), (1.0, "ii"), (2.5, "iii")])
    axes = figures[0].axes
    for axis in axes:
        dashed = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"]
        assert dashed == [0.5, 2.0]
    assert [text.get_text() for text in axes[0].texts] == ["i", "ii", "iii"]


def test_every_curve_of_a_training_reaches_wandb_with_its_epoch_and_class(make_trainer, wandb):
    trainer = make_trainer("nnUNetTrainerCrossMatch_smoke")
    trainer.run_training()
    local = {k: v for k, v in trainer.logger.local_logger.my_fantastic_logging.items() if k.startswith(PREFIX)}
    expected = {}
    for key, values in local.items():
        for epoch, value in enumerate(values):
            if isinstance(value, list):
                expected |= {(epoch, f"{key}/{label}"): v for label, v in zip("012", value, strict=True)}
            else:
                expected[epoch, key] = value
    pairs = [(step, key) for step, values in wandb.run.logged for key in values]
    received = {(step, key): value for step, values in wandb.run.logged for key, value in values.items()}
    ours = {at: value for at, value in received.items() if at[1].startswith(PREFIX)}
    drawn = {at: value for at, value in expected.items() if at in ours or value == value}  # no gap is sent
    assert ours.keys() == drawn.keys() and {step for step, _ in ours} == {0, 1}
    np.testing.assert_array_equal([ours[at] for at in drawn], list(drawn.values()))
    assert {f"{PREFIX}kept_share/{label}" for label in "012"} < {key for _, key in ours}
    assert len(pairs) == len(set(pairs)), "nothing is sent twice"
    assert [step for step, _ in wandb.run.logged] == sorted(step for step, _ in wandb.run.logged)  # W&B drops the past
    assert (1, "train_losses") in received  # nnU-Net's own, so that the steps are the same axis
    assert wandb.run.config["method"]["method"] == "CrossMatch" and wandb.run.config["method"]["eta"] == 0.3
