import pytest

from nnunetv2_crossmatch.nnunet.training_log import CURVES, TrainingLog
from tests.nnunet.conftest import epoch, write_log


def test_epochs_that_were_trained_twice_count_once_and_a_new_beginning_forgets_the_old_one(tmp_path):
    """The names are nnU-Net's: 9 November comes before 10 November."""
    write_log(tmp_path, "2026_9_30_12_00_00", *epoch(0, 0.9, 100), *epoch(1, 0.8, 100), *epoch(2, 0.7, 100))
    split = "This split has 4 training and 1 validation cases."
    write_log(tmp_path, "2026_11_9_12_00_00", split, *epoch(0, 0.25, 10), *epoch(1, 0.5, 20))
    curve = CURVES + '{"pseudo_label_dice": 0.5, "kept_share": [0.1, NaN], "loss_dominance": NaN, "norm": -Infinity}'
    cut_off = CURVES + '{"pseudo_la'
    lines = ["24 unlabeled cases; 0 more", *epoch(1, 1e-05, 36, curve, cut_off), "Training done."]
    write_log(tmp_path, "2026_11_10_1_00_00", *lines)
    log = TrainingLog.read(tmp_path)
    assert log.hours == pytest.approx(46 / 3600)
    assert log.curve("train_loss") == ([0, 1], [0.25, 1e-05])
    assert log.curve("dice")[1] == pytest.approx([0.5, 2e-05])
    assert log.curve("unlabeled/pseudo_label_dice") == ([1], [0.5])
    assert log.curve("unlabeled/norm")[1] == [float("-inf")]
    assert (log.split, log.validated) == ((4, 1), False)
    write_log(tmp_path, "2026_12_1_1_00_00", split.replace("4", "5"), "Validation complete")
    log = TrainingLog.read(tmp_path)
    assert log.validated and log.split == (4, 1)  # of the training, whatever today's split is
