import csv

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.nnunet.logger import PREFIX, log_curves
from nnunetv2_crossmatch.trainers.curves import EpochRatios, epoch_line, gradient_ratios, plot_curves, write_curves

CPU = torch.device("cpu")
CLASSES = ["0", "1"]
NAMES = ["background", "shell", "core"]


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
    assert own.get_title(loc="left") == "the method's own: entropy, sharpness"
    assert [line.get_label() for line in own.lines] == ["entropy", "sharpness, 0", "sharpness, 1"]


def test_one_panel_alone_is_drawn(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"loss_a": 1.0}, 0, CLASSES)
    plot_curves(logger, tmp_path / "curves.png", CLASSES, [(0, "i")])
    assert len(figures[0].axes) == 1 and [t.get_text() for t in figures[0].axes[0].texts] == ["i"]
    assert (tmp_path / "curves.png").exists()


def test_the_csv_has_a_row_for_each_epoch_and_a_column_for_each_class(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    for epoch, kept in enumerate(([0.9, 0.5, float("nan")], [1.0, 0.25, 0.125])):
        logger.log("train_losses", np.float32(-0.5), epoch)
        logger.log("dice_per_class_or_region", [np.float64(0.5), np.float64(0.75)], epoch)
        log_curves(logger, {"kept_share": kept, "loss_a": 1.0} if epoch else {"kept_share": kept}, epoch, NAMES)
    write_curves(logger, tmp_path / "curves.csv", NAMES)
    rows = [
        {name: value for name, value in row.items() if value}
        for row in csv.DictReader((tmp_path / "curves.csv").open())
    ]
    both = {"train_loss": "-0.5", "dice/shell": "0.5", "dice/core": "0.75"}
    of = f"{PREFIX}kept_share"
    assert rows == [
        {"epoch": "0", **both, f"{of}/background": "0.9", f"{of}/shell": "0.5"},
        {
            "epoch": "1",
            **both,
            f"{of}/background": "1",
            f"{of}/shell": "0.25",
            f"{of}/core": "0.125",
            f"{PREFIX}loss_a": "1",
        },
    ]


def test_an_epoch_is_one_line_with_the_names_of_classes_and_losses():
    curves = {"loss_ip": 0.25, "loss_mine": 1.5, "loss_supervised": float("nan"), "skipped_share": 0.0}
    curves |= {"kept_share": [0.99, 0.5, 0.25, float("nan"), 0.75], "pseudo_label_dice": 0.5}
    assert epoch_line(curves, ["background", "liver", "spleen", "none", "colon"]) == (
        "losses: changed image (ip) 0.250, loss mine 1.500; sure enough to count: spleen 25%, liver 50%, colon 75%; "
        "Dice of its labels by hidden labels 0.500"
    )
    assert epoch_line({"kept_share": [float("nan")]}, ["background"]) == "sure enough to count: no voxel"
    assert epoch_line({"kept_share": 0.25}, ["background"]) == "sure enough to count: 25%"  # UAMT's, of all classes
    assert epoch_line({"kept_share": float("nan")}, ["background"]) == ""


def test_a_class_that_is_not_predicted_is_seen_among_the_sizes(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    for epoch in range(2):
        log_curves(logger, {"share": [1.0, 0.0, 4.0]}, epoch, NAMES)
    plot_curves(logger, tmp_path / "curves.png", NAMES)
    (axis,) = figures[0].axes
    heights = [axis.transAxes.inverted().transform(axis.transData.transform((0, y)))[1] for y in (0, 1, 4)]
    assert 0 < heights[0] < heights[1] < heights[2] < 1


def test_nnunets_loss_has_its_own_axis_and_limits_are_lines_beside_the_validation_dice(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    logger.log("dice_per_class_or_region", [0.5, 0.75], 0)
    log_curves(logger, {"loss_supervised": -0.5, "loss_ip": 0.25}, 0, NAMES)
    plot_curves(logger, tmp_path / "curves.png", NAMES, limits={"dice": [0.6]})
    dice, labeled, unlabeled = figures[0].axes
    shown = [(line.get_label(), line.get_ydata()[0], line.get_linestyle()) for line in dice.lines]
    assert shown[:2] == [("shell", 0.5, "-"), ("core", 0.75, "-")] and shown[2][1:] == (0.6, ":")
    assert [line.get_label() for line in labeled.lines] == ["nnU-Net's own, labeled scans (supervised)"]
    assert [line.get_label() for line in unlabeled.lines] == ["changed image (ip)"]
    assert {line.get_marker() for line in (*labeled.lines, *unlabeled.lines)} == {"o"}


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


def test_the_slice_with_most_foreground_is_drawn_with_its_labels(tmp_path, figures):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"loss_a": 1.0}, 0, CLASSES)
    slices = np.arange(2 * 8 * 6, dtype=float).reshape(2, 8, 6)
    labels = {epoch: torch.zeros(2, 8, 6, dtype=torch.uint8) for epoch in (0, 5)}
    labels[5][1, 2:4, 3] = 2
    plot_curves(logger, tmp_path / "curves.png", NAMES, shown=(slices, labels))
    axis = figures[0].axes[-1]
    picture = axis.images[0].get_array()
    assert picture.shape == (8, 12, 3)
    colored = np.ptp(picture, axis=-1) > 0
    np.testing.assert_array_equal(np.argwhere(colored), [[2, 9], [3, 9]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["epoch 0", "epoch 5"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["shell", "core"]


def test_every_curve_of_a_training_reaches_wandb_with_its_epoch_and_class(make_trainer, wandb):
    trainer = make_trainer("nnUNetTrainerCrossMatch_smoke")
    trainer.run_training()
    local = {k: v for k, v in trainer.logger.local_logger.my_fantastic_logging.items() if k.startswith(PREFIX)}
    expected = {}
    for key, values in local.items():
        for epoch, value in enumerate(values):
            if isinstance(value, list):
                expected |= {(epoch, f"{key}/{label}"): v for label, v in zip(NAMES, value, strict=True)}
            else:
                expected[epoch, key] = value
    pairs = [(step, key) for step, values in wandb.run.logged for key in values]
    received = {(step, key): value for step, values in wandb.run.logged for key, value in values.items()}
    ours = {at: value for at, value in received.items() if at[1].startswith(PREFIX)}
    drawn = {at: value for at, value in expected.items() if at in ours or value == value}  # no gap is sent
    assert ours.keys() == drawn.keys() and {step for step, _ in ours} == {0, 1}
    np.testing.assert_array_equal([ours[at] for at in drawn], list(drawn.values()))
    assert {f"{PREFIX}kept_share/{label}" for label in NAMES} < {key for _, key in ours}
    assert len(pairs) == len(set(pairs)), "nothing is sent twice"
    assert [step for step, _ in wandb.run.logged] == sorted(step for step, _ in wandb.run.logged)  # W&B drops the past
    assert (1, "train_losses") in received  # nnU-Net's own, so that the steps are the same axis
    assert wandb.run.config["method"]["method"] == "CrossMatch" and wandb.run.config["method"]["eta"] == 0.3
