import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.trainers.curves import PREFIX, EpochRatios, log_curves, plot_curves

CPU = torch.device("cpu")


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


def test_a_curve_that_begins_late_or_pauses_has_one_value_per_epoch(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"a": 1.0}, 0)
    log_curves(logger, {"a": 2.0, "kept_share": [0.5, float("nan")]}, 1)
    log_curves(logger, {"kept_share": [0.6, 0.7]}, 2)
    store = logger.local_logger.my_fantastic_logging
    np.testing.assert_array_equal(store[PREFIX + "a"], [1, 2, np.nan])
    assert np.isnan(store[PREFIX + "kept_share"][0])
    assert store[PREFIX + "kept_share"][2] == [0.6, 0.7]
    plot_curves(logger, tmp_path / "curves.png", ["background", "organ"])
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_stages_are_lines_in_every_panel_and_named_in_the_first(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("nnunetv2_crossmatch.trainers.curves.plt.close", figures.append)
    logger = MetaLogger(str(tmp_path), False)
    for epoch in range(4):
        log_curves(logger, {"loss_a": 1.0, "clipped_share": 0.0}, epoch)
    plot_curves(logger, tmp_path / "curves.png", ["background"], [(0, "i"), (1.0, "ii"), (2.5, "iii")])
    axes = figures[0].axes
    for axis in axes:
        dashed = [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"]
        assert dashed == [0.5, 2.0]
    assert [text.get_text() for text in axes[0].texts] == ["i", "ii", "iii"]
