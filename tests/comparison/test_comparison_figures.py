from types import SimpleNamespace

import numpy as np
import pytest

from nnunetv2_crossmatch.comparison import figures
from nnunetv2_crossmatch.nnunet.training_log import TrainingLog


def test_the_slice_is_one_with_truth_where_there_is_any():
    truth, reference, other = np.zeros((3, 5, 8, 8), int)
    truth[2, :2] = 1
    other[2, 0] = other[4] = 1  # 8 voxels right beside the truth, 64 wrong ones where there is none
    for mask, number in ((truth, 3), (np.zeros_like(truth), 5)):
        scan = figures.Scan(np.zeros(truth.shape), {"truth": mask, "a": reference, "b": other}, (3, 1, 1))
        picture, where = figures.draw_scan(scan, 1, {"organ": (1,)})
        assert picture.startswith("data:image/png;base64,") and where == f"slice {number} of 5"


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_of_one_epoch_is_a_point_that_can_be_seen(monkeypatch, epochs):
    drawn = []
    monkeypatch.setattr(figures, "_svg", drawn.append)
    log = TrainingLog({i: {"dice": 0.5, "seconds": 36.0} for i in range(epochs)})
    figures.plot_curves([SimpleNamespace(trainer="a", runs=[SimpleNamespace(log=log)])], {"dice": "Dice"})
    assert drawn[0].axes[0].lines[0].get_marker() == ("o" if epochs == 1 else "None")
