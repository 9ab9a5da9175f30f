"""Self-training, run as users run it."""

import json
import shutil

import numpy as np
import pytest

from nnunetv2_crossmatch.cli import main
from tests.conftest import DATASET, SMALL_ON_CPU, masks, run

pytestmark = pytest.mark.slow

TEACHER = "nnUNetTrainer_1epoch"
STUDENT = "nnUNetTrainerPseudoLabel_smoke"
LABEL = ("pseudo-label", "-d", "901", "-c", "3d_fullres", "-f", "0", "-tr", TEACHER, "-np", "1", *SMALL_ON_CPU)


def test_supervised_then_pseudo_label_then_train_then_predict(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(list(LABEL))
    assert "Run: nnUNetv2_train Dataset901_Balls 3d_fullres 0 -tr nnUNetTrainer_1epoch" in capsys.readouterr().err

    run("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", TEACHER, *SMALL_ON_CPU)
    printed = run("nnUNetv2_crossmatch", *LABEL).stdout
    assert "fold 0: 4 labeled, 0 were there" in printed
    assert "confident voxels of each predicted class: background " in printed
    assert "\n  nnUNetv2_train Dataset901_Balls 3d_fullres 0 -tr nnUNetTrainerPseudoLabel -p nnUNetPlans" in printed
    folder = dataset / "raw" / DATASET / "pseudo_labels" / f"{TEACHER}__nnUNetPlansSmall__3d_fullres" / "fold_0"
    labels = masks(folder)
    assert labels.keys() == {f"scan{i}.nii.gz" for i in range(4)}
    assert all({0, 3} <= set(np.unique(label)) and (label == 1).any() for label in labels.values())

    shutil.copy(folder / "scan0.nii.gz", folder / "scan1.nii.gz")  # a correction
    main(list(LABEL))
    printed = capsys.readouterr().out
    assert "fold 0: 0 labeled, 3 were there" in printed
    assert "corrected by hand and kept: scan1" in printed

    run("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", STUDENT, *SMALL_ON_CPU)
    model = dataset / "results" / DATASET / f"{STUDENT}__nnUNetPlansSmall__3d_fullres"
    assert json.loads((model / "fold_0" / "pseudo_labels.json").read_text())["trainer"] == TEACHER
    images, output = dataset / "raw" / DATASET / "imagesTs", tmp_path / "student"
    predict = ("nnUNetv2_predict", "-d", "901", "-c", "3d_fullres", "-f", "0", "-npp", "1", "-nps", "1")
    run(*predict, "-i", images, "-o", output, "-tr", STUDENT, *SMALL_ON_CPU)
    assert masks(output).keys() == {"test0.nii.gz", "test1.nii.gz"}

    rounds = ("self-train", *LABEL[1:], "--student", STUDENT, "--rounds", "1")
    printed = run("nnUNetv2_crossmatch", *rounds).stdout
    assert "round 0, fold 0: 0 labeled, 3 were there" in printed and "round 1, fold 0: 3 labeled, 0 were" in printed
    first = f"{STUDENT}_round1_of_{TEACHER}"
    assert f"-tr {TEACHER} {first} -f 0" in printed
    again = folder.parent.with_name(f"{first}__nnUNetPlansSmall__3d_fullres") / "fold_0"
    assert (again / "scan1.nii.gz").read_bytes() == (folder / "scan1.nii.gz").read_bytes()  # the correction
    made = {
        file: file.stat().st_mtime_ns for file in (*again.glob("*.nii.gz"), *dataset.glob(f"results/*/{first}*/*/*"))
    }
    main(list(rounds))
    assert "round 1, fold 0: 0 labeled, 3 were there" in capsys.readouterr().out
    assert made == {file: file.stat().st_mtime_ns for file in made}
    run(*predict, "-i", images, "-o", tmp_path / "first", "-tr", first, *SMALL_ON_CPU)
    assert masks(tmp_path / "first").keys() == masks(output).keys()
