"""nnU-Net's logger with values that it does not know."""

import numpy as np
import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.nnunet.logger import PREFIX, add_tensorboard, convert_values, log_curves, logged_curves

CLASSES = ["0", "1"]


def test_nnunet_refuses_keys_of_its_own_making(tmp_path):
    """If it does not any more, log_curves can be simpler."""
    with pytest.raises(AssertionError):
        MetaLogger(str(tmp_path), False).log("unknown", 1.0, 0)


def test_a_curve_that_begins_late_or_pauses_has_one_value_per_epoch(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"a": 1.0}, 0, CLASSES)
    log_curves(logger, {"a": 2.0, "kept_share": [0.5, float("nan")]}, 1, CLASSES)
    log_curves(logger, {"kept_share": [0.6, 0.7]}, 2, CLASSES)
    store = {PREFIX + name: values for name, values in logged_curves(logger).items()}
    np.testing.assert_array_equal(store[PREFIX + "a"], [1, 2, np.nan])
    assert np.isnan(store[PREFIX + "kept_share"][0])
    assert store[PREFIX + "kept_share"][2] == [0.6, 0.7]


def test_values_are_converted_where_nnunet_saves_them(tmp_path):
    logger = MetaLogger(str(tmp_path), False)
    logger.log("train_losses", np.float32(0.5), 0)
    convert_values(logger, lambda values: {key: [float(v) for v in of_key] for key, of_key in values.items()})
    (saved,) = logger.get_checkpoint()["train_losses"]
    assert saved == 0.5 and type(saved) is float


def test_a_curve_that_pauses_sends_nothing_to_wandb(tmp_path, wandb):
    logger = MetaLogger(str(tmp_path), False)
    log_curves(logger, {"kept_share": [0.5, 1.0]}, 0, ["0", "(1, 2)"])
    log_curves(logger, {"loss": 2.0}, 1, ["0", "(1, 2)"])
    assert wandb.run.logged == [
        (0, {f"{PREFIX}kept_share/0": 0.5}),
        (0, {f"{PREFIX}kept_share/(1, 2)": 1.0}),
        (1, {f"{PREFIX}loss": 2.0}),
    ]


def test_tensorboard_gets_what_wandb_gets_where_it_is_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train(*epochs: int) -> None:
        logger = MetaLogger(str(tmp_path), False)
        logger.local_logger.my_fantastic_logging["train_losses"] = [0.0] * epochs[0]
        add_tensorboard(logger)
        for epoch in epochs:
            logger.log("train_losses", 10.0 * epoch, epoch)
            log_curves(logger, {"kept_share": [0.5, 1.0 + epoch]}, epoch, ["0", "liver"])

    train(0, 1)
    assert not (tmp_path / "tensorboard").exists()
    monkeypatch.setenv("nnUNet_tensorboard_enabled", "1")
    train(0, 1, 2)
    train(1, 2, 3)  # went on from the checkpoint after the first epoch
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train_losses")] == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert [e.value for e in found.Scalars(f"{PREFIX}kept_share/liver")] == [1, 2, 3, 4]


def test_tensorboard_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("nnunetv2_crossmatch.nnunet.logger.find_spec", lambda name: None)
    monkeypatch.setenv("nnUNet_tensorboard_enabled", "1")
    with pytest.raises(RuntimeError, match="needs TensorBoard: pip install tensorboard"):
        add_tensorboard(MetaLogger(str(tmp_path), False))
