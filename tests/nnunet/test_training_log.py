import pytest

from nnunetv2_crossmatch.nnunet.training_log import CURVES, CURVES_FILE, TrainingLog
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


def test_curves_are_read_from_their_file_as_far_as_the_log_has_the_epochs(tmp_path):
    write_log(tmp_path, "1", *epoch(0, 0.9, 100, CURVES + '{"norm": 1.0}'), *epoch(1, 0.8, 100))
    rows = "epoch,train_loss,unlabeled/norm,unlabeled/kept_share/liver\n0,7,2,\n1,7,3,0.5\n2,7,4,0.5\n"
    (tmp_path / CURVES_FILE).write_text(rows)
    log = TrainingLog.read(tmp_path)
    assert log.curve("unlabeled/norm") == ([0, 1], [2, 3]) and log.curve("train_loss")[1] == [0.9, 0.8]
    assert log.curve("unlabeled/kept_share/liver") == ([1], [0.5])


def test_epochs_after_the_checkpoint_that_a_training_goes_on_from_are_forgotten(tmp_path):
    write_log(tmp_path, "2026_1_1_1_1_1", *epoch(0, 0.9, 10), *epoch(1, 0.8, 20), *epoch(2, 0.7, 40))
    write_log(tmp_path, "2026_1_2_1_1_1", "Epoch 1")
    log = TrainingLog.read(tmp_path)
    assert log.epochs.keys() == {0, 1} and log.ended.keys() == {0} and 3600 * log.hours == pytest.approx(10)
