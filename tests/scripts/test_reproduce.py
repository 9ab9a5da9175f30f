import json
import os
import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_crossmatch.dataset_conversion.common import listed
from nnunetv2_crossmatch.methods.crossmatch_paper import CrossMatchPaperConstants
from tests.conftest import REPOSITORY, ball, run, use_folders

pytestmark = pytest.mark.slow

SCRIPT = REPOSITORY / "scripts" / "reproduce.py"


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import reproduce

    yield reproduce
    sys.modules.pop("reproduce")
    sys.modules.pop("experiment")


def test_from_the_download_to_the_table_in_slices(tmp_path, monkeypatch):
    """Six tiny scans in the form of LA: every call does a little more, the last prints the table."""
    use_folders(tmp_path, monkeypatch.setenv)
    rng = np.random.default_rng(0)
    for scan in (*listed("la_train")[:6], *listed("la_test")[:2]):
        (image,), label = ball(rng)
        folder = tmp_path / "source" / scan
        folder.mkdir(parents=True)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "lgemri.nrrd"))
        sitk.WriteImage(sitk.GetImageFromArray(255 * (label > 0).astype(np.uint8)), str(folder / "laendo.nrrd"))

    def call(*arguments: str, **environment: str) -> str:
        result = run(SCRIPT, "la-4", *arguments, "--epochs", "2", check=False, **environment)
        assert result.returncode == (os.EX_TEMPFAIL if "slice is over" in result.stdout else 0), result.stdout
        return result.stdout

    prepared = call(str(tmp_path / "source"), "--slice-minutes", "0.001", nnUNet_n_proc_DA="1")
    assert "0 of 2 runs are done" in prepared
    (dataset,) = (f.name for f in (tmp_path / "preprocessed").iterdir())
    run(
        SCRIPT.with_name("small_plans.py"), "-d", "704", "-c", "3d_fullres",
        "--features", "4", "6", "--patch", "8", "16", "16", "--batch", "2",
    )  # fmt: skip
    (tmp_path / "raw" / dataset).rename(tmp_path / "elsewhere")
    for part in ("imagesTs", "labelsTs"):  # another machine has the preprocessed data and the test scans alone
        shutil.copytree(tmp_path / "elsewhere" / part, tmp_path / "raw" / dataset / part)

    trainer = "nnUNetTrainerCrossMatchPaper_smoke"
    once = ("-p", "nnUNetPlansSmall", "--trainers", trainer)
    slices = [call(*once, "--slice-minutes", "0.001")]  # shorter than an epoch: one is trained all the same
    while "slice is over" in slices[-1] and len(slices) < 8:
        slices.append(call(*once, "--slice-minutes", "0.001"))
    assert len(slices) >= 3, "an epoch, another epoch, predictions"
    assert f"{trainer}_2epochs" in slices[-1]
    (tmp_path / "source").rename(tmp_path / "no source")  # and a third one all but the unlabeled originals
    shutil.rmtree(tmp_path / "raw" / dataset)
    (tmp_path / "elsewhere").rename(tmp_path / "raw" / dataset)
    table = call(*once, "--runs", "2")
    assert f"{trainer}_2epochs" in table and "+-" in table and "ACTION tables" in table

    results = []
    for seed in range(2):
        fold = tmp_path / "results" / f"la-4_run{seed}" / dataset
        fold = fold / f"{trainer}_2epochs__nnUNetPlansSmall__3d_fullres" / "fold_all"
        results.append(json.loads((fold / "result.json").read_text()))
        assert len(list((fold / "predictions").glob("*.nii.gz"))) == 2
        logs = "".join(log.read_text() for log in fold.glob("training_log*"))
        assert all(logs.count(f"Epoch {e}\n") + logs.count(f"Epoch {e} \n") == 1 for e in range(2)), "trained once"
    assert [result["seed"] for result in results] == [0, 1]


def test_only_crossmatch_has_the_ablation(reproduce):
    assert reproduce.variants("nnUNetTrainer", ablation=True) == {"": {}}
    assert reproduce.variants("nnUNetTrainerCrossMatchPaper", ablation=False) == {"": {}}
    both = reproduce.variants("nnUNetTrainerCrossMatchPaper_smoke", ablation=True)
    assert list(both) == ["", *reproduce.ABLATION]


def test_every_ablation_changes_a_constant_of_the_method_and_nothing_else(reproduce):
    default = CrossMatchPaperConstants()
    variants = [CrossMatchPaperConstants(**constants) for constants in reproduce.ABLATION.values()]
    assert default not in variants and len(set(variants)) == len(variants)

    def weights(constants):
        on = 1 - constants.eta
        return constants.lambda_ip, constants.lambda_kd * on, constants.lambda_kd * constants.eta

    ip, tkd, dkd = weights(default)
    for name, expected in {"ip": (0, tkd, dkd), "tkd": (ip, 0, dkd), "dkd": (ip, tkd, 0)}.items():
        constants = CrossMatchPaperConstants(**reproduce.ABLATION[f"without_{name}"])
        assert weights(constants) == pytest.approx(expected)


def test_without_a_source_the_error_says_what_to_name(tmp_path, monkeypatch):
    use_folders(tmp_path, monkeypatch.setenv)
    result = run(SCRIPT, "la-4", "--epochs", "1", check=False)
    assert result.returncode == 1 and "name SRC" in result.stdout
