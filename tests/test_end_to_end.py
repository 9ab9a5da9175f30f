"""The commands of nnU-Net's users, run as they run them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from tests.conftest import DATASET, SMALL_ON_CPU, make_raw_dataset, masks, plan, run, use_folders

pytestmark = pytest.mark.slow

TRAINER = "nnUNetTrainerCrossMatch_smoke"
ODD_NAME = "Müller 1.5T_é_肝臓.v2"
MODEL = f"{TRAINER}__nnUNetPlansSmall__3d_fullres"


def hashes(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for pattern in patterns
        for f in sorted(folder.glob(pattern))
    }


@pytest.fixture(scope="module")
def trained(planned, tmp_path_factory) -> Path:
    """One fold trained by nnUNetv2_train, without preprocessing the unlabeled scans first."""
    base = tmp_path_factory.mktemp("trained") / "nnunet"
    shutil.copytree(planned, base)
    scan = base / "raw" / DATASET / "imagesUn" / "scan3_0000.nii.gz"
    scan.rename(scan.with_name(f"{ODD_NAME}_0000.nii.gz"))
    with pytest.MonkeyPatch.context() as patch:
        use_folders(base, patch.setenv)
        run("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", TRAINER, *SMALL_ON_CPU)
    return base


@pytest.fixture(autouse=True)
def folders(request, monkeypatch):
    if "trained" in request.fixturenames:
        use_folders(request.getfixturevalue("trained"), monkeypatch.setenv)


def test_training_leaves_what_nnunet_leaves_and_our_curves(trained):
    fold = trained / "results" / DATASET / MODEL / "fold_0"
    names = {f.name for f in fold.iterdir()}
    assert {
        "checkpoint_final.pth",
        "checkpoint_best.pth",
        "progress.png",
        "progress_unlabeled.png",
        "method.json",
        "validation",
    } <= names
    assert not [n for n in names if n.endswith(".tmp")]
    assert "foreground_mean" in json.loads((fold / "validation" / "summary.json").read_text())
    unlabeled = trained / "preprocessed" / DATASET / "nnUNetPlans_3d_fullres_unlabeled"
    assert {f.stem for f in unlabeled.glob("*.pkl")} == {"scan0", "scan1", "scan2", ODD_NAME}


def test_the_exported_model_predicts_the_same_without_this_package(trained, tmp_path):
    images = trained / "raw" / DATASET / "imagesTs"
    predict = ("-i", images, "-d", "901", "-c", "3d_fullres", "-f", "0", "-npp", "1", "-nps", "1", *SMALL_ON_CPU)
    run("nnUNetv2_predict", *predict, "-o", tmp_path / "ours", "-tr", TRAINER)

    model = ("-d", "901", "-c", "3d_fullres", "-tr", TRAINER, "-p", "nnUNetPlansSmall")
    run("nnUNetv2_crossmatch", "export", *model, "-o", tmp_path / "model.zip")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip", nnUNet_results=str(elsewhere))
    assert [f.name for f in (elsewhere / DATASET).iterdir()] == ["nnUNetTrainer__nnUNetPlansSmall__3d_fullres"]
    (tmp_path / "predict.py").write_text(
        "import sys; sys.modules['nnunetv2_crossmatch'] = None\n"
        "from nnunetv2.inference.predict_from_raw_data import predict_entry_point\n"
        "if __name__ == '__main__': predict_entry_point()\n"
    )
    run("python", tmp_path / "predict.py", *predict, "-o", tmp_path / "stock", nnUNet_results=str(elsewhere))
    ours, theirs = masks(tmp_path / "ours"), masks(tmp_path / "stock")
    assert ours.keys() == theirs.keys() == {"test0.nii.gz", "test1.nii.gz"}
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert any(mask.any() for mask in ours.values()), "empty masks would prove nothing"


def test_training_continues_with_c(trained):
    fold = trained / "results" / DATASET / MODEL / "fold_0"
    (fold / "checkpoint_final.pth").rename(fold / "final")
    shutil.copy(fold / "checkpoint_best.pth", fold / "checkpoint_latest.pth")
    epoch = torch.load(fold / "checkpoint_latest.pth", weights_only=False)["current_epoch"]
    result = run("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", TRAINER, "--c", *SMALL_ON_CPU)
    assert (fold / "checkpoint_final.pth").exists()
    assert [f"Epoch {e}\n" in result.stdout for e in range(2)] == [e >= epoch for e in range(2)]


def test_bad_input_stops_training_with_one_line_and_no_epoch(trained, tmp_path, monkeypatch):
    base = tmp_path / "nnunet"
    shutil.copytree(trained, base)
    use_folders(base, monkeypatch.setenv)
    shutil.copy(base / "raw" / DATASET / "imagesTr" / "case0_0000.nii.gz", base / "raw" / DATASET / "imagesUn")
    train = run("nnUNetv2_train", "901", "3d_fullres", "1", "-tr", TRAINER, *SMALL_ON_CPU, check=False)
    assert train.returncode != 0 and "Epoch 0" not in train.stdout
    assert "case0 is also in" in train.stdout.strip().splitlines()[-1]
    ours = run(
        "nnUNetv2_crossmatch", "preprocess", "-d", "901", "-c", "3d_fullres", "-p", "nnUNetPlansSmall", check=False
    )
    assert ours.returncode == 2 and "Traceback" not in ours.stdout
    assert "case0 is also in" in ours.stdout


def test_cross_validation_ensemble(tmp_path, monkeypatch):
    """Both folds of 2d and 3d_fullres, two input channels: best configuration, ensemble, postprocessing."""
    use_folders(tmp_path, monkeypatch.setenv)
    make_raw_dataset(tmp_path / "raw" / "Dataset902_Two", labeled=2, unlabeled=2, test=2, channels=2)
    plan("902", "2d", "3d_fullres")
    run(
        "nnUNetv2_crossmatch", "preprocess", "-d", "902", "-c", "2d", "3d_fullres", "-p", "nnUNetPlansSmall", "-np", "1"
    )
    assert len(json.loads((tmp_path / "preprocessed" / "Dataset902_Two" / "splits_final.json").read_text())) == 2
    for configuration in ("2d", "3d_fullres"):
        for fold in ("0", "1"):
            run("nnUNetv2_train", "902", configuration, fold, "-tr", TRAINER, "--npz", *SMALL_ON_CPU)
    run(
        "nnUNetv2_find_best_configuration",
        "902",
        "-c",
        "2d",
        "3d_fullres",
        "-tr",
        TRAINER,
        "-p",
        "nnUNetPlansSmall",
        "-f",
        "0",
        "1",
        "-np",
        "1",
    )
    images, results = tmp_path / "raw" / "Dataset902_Two" / "imagesTs", tmp_path / "results" / "Dataset902_Two"
    for configuration in ("2d", "3d_fullres"):
        run(
            "nnUNetv2_predict",
            "-i",
            images,
            "-o",
            tmp_path / configuration,
            "-d",
            "902",
            "-c",
            configuration,
            "-f",
            "0",
            "1",
            "-tr",
            TRAINER,
            "--save_probabilities",
            "-npp",
            "1",
            "-nps",
            "1",
            *SMALL_ON_CPU,
        )
    run("nnUNetv2_ensemble", "-i", tmp_path / "2d", tmp_path / "3d_fullres", "-o", tmp_path / "ensemble", "-np", "1")
    best = json.loads((results / "inference_information.json").read_text())["best_model_or_ensemble"]
    run(
        "nnUNetv2_apply_postprocessing",
        "-i",
        tmp_path / "ensemble",
        "-o",
        tmp_path / "final",
        "-pp_pkl_file",
        best["postprocessing_file"],
        "-np",
        "1",
        "-plans_json",
        best["some_plans_file"],
    )
    assert masks(tmp_path / "final").keys() == {"test0.nii.gz", "test1.nii.gz"}


def test_labeled_data_are_byte_identical_with_and_without_unlabeled_scans(tmp_path, monkeypatch):
    found = {}
    for unlabeled in (0, 3):
        base = tmp_path / str(unlabeled)
        base.mkdir()
        use_folders(base, monkeypatch.setenv)
        make_raw_dataset(base / "raw" / DATASET, labeled=5, unlabeled=unlabeled)
        plan("901", "3d_fullres")
        if unlabeled:
            run("nnUNetv2_crossmatch", "preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1")
        else:  # nnU-Net writes its own split when it trains
            folder = base / "preprocessed" / DATASET
            plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
            dataset_json = json.loads((folder / "dataset.json").read_text())
            nnUNetTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu")).do_split()
        found[unlabeled] = hashes(
            base / "preprocessed" / DATASET, "*.json", "nnUNetPlans_3d_fullres/*", "gt_segmentations/*"
        )
    assert found[3].pop("content.json")  # ours, of all scans
    assert found[0] == found[3]
    assert "splits_final.json" in found[0] and "dataset_fingerprint.json" in found[0] and len(found[0]) > 20
