import json

import pytest
import SimpleITK as sitk

from tests.conftest import REPOSITORY, make_raw_dataset, run

pytestmark = pytest.mark.slow

TRAINERS = {"nnUNetTrainer_5epochs": (0.9, 0.8, 0.7), "nnUNetTrainerCrossMatch_5epochs": (0.8, 0.9, 0.75)}


@pytest.fixture
def held_out(tmp_path):
    """Three test scans whose predictions are the truth; the trainers' Dice as above."""
    make_raw_dataset(tmp_path / "raw", labeled=0, unlabeled=0, test=3)
    folder = tmp_path / "held_out"
    folder.mkdir()
    for kind in ("images", "labels"):
        (tmp_path / "raw" / f"{kind}Ts").rename(folder / kind)
    for trainer, dice in TRAINERS.items():
        cases = [
            {
                "prediction_file": str(folder / trainer / f"test{i}.nii.gz"),
                "metrics": {"1": {"Dice": d}, "2": {"Dice": d}},
            }
            for i, d in enumerate(dice)
        ]
        (folder / trainer).mkdir()
        (folder / trainer / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
        (folder / trainer / "dataset.json").write_text((tmp_path / "raw" / "dataset.json").read_text())
        for label in (folder / "labels").iterdir():
            (folder / trainer / label.name).symlink_to(label)
    return folder


def test_the_picture_is_of_the_scan_of_median_difference(held_out, tmp_path):
    file = tmp_path / "scan.png"
    said = run(REPOSITORY / "scripts" / "picture.py", held_out, file).stdout
    assert "test2" in said, "differences are -0.1, 0.1 and 0.05"
    assert sitk.ReadImage(str(file)).GetSize()[0] > 900


def test_the_predictions_of_two_trainers_are_needed(held_out, tmp_path):
    (held_out / "nnUNetTrainer_5epochs" / "summary.json").unlink()
    result = run(REPOSITORY / "scripts" / "picture.py", held_out, tmp_path / "scan.png", check=False)
    assert result.returncode == 2 and "of 1 trainers; two are needed" in result.stdout
