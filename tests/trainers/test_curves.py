import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.nnunet.logger import PREFIX, log_curves
from nnunetv2_crossmatch.trainers.curves import EpochRatios, gradient_ratios, plot_curves

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


@pytest.fixture
def figures(monkeypatch) -> list:
    drawn: list = []
    monkeypatch.setattr("nnunetv2_crossmatch.trainers.curves.plt.close", drawn.append)
    return drawn


def test_every_logged_curve_is_drawn_a_methods_own_too(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    values = {"loss_a": 1.0, "kept_share": [2.0, 3.0], "entropy": 4.0, "sharpness": [5.0, 6.0], "agreement_view": 7.0}
    log_curves(logger, values, 0, CLASSES)
    plot_curves(logger, tmp_path / "curves.png", CLASSES)
    axes = figures[0].axes
    assert sorted(float(line.get_ydata()[0]) for axis in axes for line in axis.lines) == [1, 2, 3, 4, 5, 6, 7]
    own = axes[-1]
    assert own.get_title() == "the method's own: entropy, sharpness"
    assert [line.get_label() for line in own.lines] == ["entropy", "sharpness, 0", "sharpness, 1"]


def test_one_panel_alone_is_drawn(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"loss_a": 1.0}, 0, CLASSES)
    plot_curves(logger, tmp_path / "curves.png", CLASSES, [(0, "i")])
    assert len(figures[0].axes) == 1 and [t.get_text() for t in figures[0].axes[0].texts] == ["i"]
    assert (tmp_path / "curves.png").exists()


def test_ratios_of_gradient_norms_leave_out_epochs_that_lack_one(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    assert gradient_ratios(logger) == []
    log_curves(logger, {"gradient_norm_labeled": 2.0}, 0, CLASSES)  # a warm-up
    log_curves(logger, {"gradient_norm_labeled": 4.0, "gradient_norm_unlabeled": 1.0}, 1, CLASSES)
    log_curves(logger, {"gradient_norm_unlabeled": 1.0}, 2, CLASSES)
    log_curves(logger, {"gradient_norm_labeled": 4.0, "gradient_norm_unlabeled": 2.0}, 3, CLASSES)
    assert gradient_ratios(logger) == [0.25, 0.5]


def test_stages_are_lines_in_every_panel_and_named_in_the_first(tmp_path, figures):
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
