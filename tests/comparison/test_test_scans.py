"""compare --test with real models, as bad as an untrained network is."""

import json
from pathlib import Path

import SimpleITK as sitk

from nnunetv2_crossmatch.cli import main
from tests.conftest import DATASET
from tests.nnunet.conftest import epoch, write_log

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerCrossMatch_smoke")


def test_test_scans_are_predicted_once_for_each_set_of_checkpoints(dataset, make_trainer, capsys):
    models = []
    for seed, name in enumerate(TRAINERS):
        trainer = make_trainer(name, seed=seed)
        trainer.initialize()
        folder = Path(trainer.output_folder)
        models.append(folder.parent)
        for file, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
            (folder.parent / f"{file}.json").write_text(json.dumps(content))
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
        write_log(folder, "1", *epoch(0, 0.5, 36))

    def compare():
        names = ["-d", "901", "-c", "3d_fullres", "-p", "nnUNetPlansSmall", "-tr", *TRAINERS, "-f", "all"]
        main(["compare", *names, "--test", "-device", "cpu", "-np", "1"])
        name = f"comparison__{'_vs_'.join(TRAINERS)}__nnUNetPlansSmall__3d_fullres__folds_all__test"
        assert (dataset / "results" / DATASET / f"{name}.html").exists()
        return json.loads((dataset / "results" / DATASET / f"{name}.json").read_text())

    found = compare()
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "raw" / DATASET / "labelsTs" / "test0.nii.gz"))) == 1
    for name, model in zip(TRAINERS, models, strict=True):
        file = model / "test_fold_all" / "test0.nii.gz"
        predicted = sitk.GetArrayFromImage(sitk.ReadImage(str(file))) == 1
        dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
        assert abs(found["dice"][name]["test0"]["shell"] - dice) < 1e-9
    assert "2 cases are too few" in capsys.readouterr().out

    files = [model / "test_fold_all" / "test0.nii.gz" for model in models]
    before = [file.stat().st_mtime_ns for file in files]
    (models[1] / "fold_all" / "checkpoint_final.pth").touch()
    compare()
    after = [file.stat().st_mtime_ns for file in files]
    assert after[0] == before[0] and after[1] > before[1]
    assert not list(models[1].glob(".incoming*"))
