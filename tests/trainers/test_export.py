import io
import json
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.cli import main
from nnunetv2_crossmatch.trainers import nnUNetTrainerCrossMatch_smoke
from tests.conftest import DATASET, ON_DEVICE, use_folders

TRAINER = "nnUNetTrainerCrossMatch_smoke"
COMMAND = ("export", "-d", "901", "-c", "3d_fullres", "-tr", TRAINER, "-p", "nnUNetPlansSmall", "-o")
STOCK = f"{DATASET}/nnUNetTrainer__nnUNetPlansSmall__3d_fullres"


@pytest.fixture
def fold(make_trainer) -> Path:
    """Folder of a trained fold."""
    trainer = make_trainer(TRAINER, fold=0)
    trainer.run_training()
    return Path(trainer.output_folder)


def refused(*argv: object, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([*map(str, argv)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_zip_holds_a_smaller_stock_model_and_says_whose_it_was(fold, tmp_path, monkeypatch):
    main([*COMMAND, str(tmp_path / "new" / "model.zip")])
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["model.zip"]
    with ZipFile(tmp_path / "new" / "model.zip") as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            f"{STOCK}/{name}"
            for name in (
                "dataset.json",
                "dataset_fingerprint.json",
                "plans.json",
                "provenance.json",
                "fold_0/checkpoint_final.pth",
                "fold_0/progress.png",
                "fold_0/progress_unlabeled.png",
            )
        }
        provenance = json.loads(archive.read(f"{STOCK}/provenance.json"))
        file = io.BytesIO(archive.read(f"{STOCK}/fold_0/checkpoint_final.pth"))
        use_folders(tmp_path, monkeypatch.setenv)
        archive.extractall(tmp_path / "results")
    checkpoint = torch.load(file, weights_only=True)
    original = torch.load(fold / "checkpoint_final.pth", weights_only=True)
    assert file.getbuffer().nbytes < 0.7 * (fold / "checkpoint_final.pth").stat().st_size
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert not {"optimizer_state", "nnunetv2_crossmatch"} & checkpoint.keys()
    weights = original["network_weights"]
    assert checkpoint["network_weights"].keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in checkpoint["network_weights"].items())

    versions = {name: version(name) for name in ("nnunetv2_crossmatch", "nnunetv2", "torch")}
    of_fold = provenance["folds"]["0"]
    assert (provenance["trainer"], provenance["exported_with"]) == (TRAINER, versions)
    assert (of_fold["trainer"], of_fold["epochs"], of_fold["trained_with"]) == (TRAINER, 2, versions)
    assert of_fold["method"] == json.loads((fold / "method.json").read_text())
    assert of_fold["method"]["method"] == "CrossMatch" and of_fold["method"]["eta"] == 0.3
    assert of_fold["unlabeled"]["scans"] == 4 and len(of_fold["unlabeled"]["sha256"]) == 64

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "results" / STOCK), (0,))
    assert predictor.network.state_dict().keys() == weights.keys()


def test_the_hash_of_the_unlabeled_scans_is_of_their_voxels(fold, tmp_path):
    def exported(name: str) -> dict:
        main([*COMMAND, str(tmp_path / name)])
        with ZipFile(tmp_path / name) as archive:
            return json.loads(archive.read(f"{STOCK}/provenance.json"))["folds"]["0"]["unlabeled"]

    training = json.loads((fold / "training.json").read_text())
    assert training["unlabeled"].keys() == {f"scan{i}" for i in range(4)}
    before = exported("a.zip")
    assert exported("b.zip") == before
    training["unlabeled"]["scan0"] = training["unlabeled"]["scan1"]
    (fold / "training.json").write_text(json.dumps(training))
    assert exported("c.zip")["sha256"] != before["sha256"]


def test_what_cannot_be_exported_is_named_and_nothing_is_written(fold, tmp_path, capsys):
    target = tmp_path / "zips" / "model.zip"
    train = f"nnUNetv2_train {DATASET} 3d_fullres"
    err = refused(*COMMAND, target, "-f", "0", "1", capsys=capsys)
    assert f"{fold.with_name('fold_1') / 'checkpoint_final.pth'} is missing. Train it: {train} 1 -tr {TRAINER}" in err
    err = refused(*COMMAND, target, "-chk", "checkpoint_x.pth", capsys=capsys)
    rest = f"{train} 0 -tr {TRAINER} -p nnUNetPlansSmall --c{ON_DEVICE} finishes it"
    assert f"{fold / 'checkpoint_x.pth'} is missing. {rest}" in err
    err = refused(*COMMAND[:-1], "-c", "2d", "-o", target, capsys=capsys)
    assert f"has no trained fold. Train one: nnUNetv2_train {DATASET} 2d 0" in err
    assert not target.exists()

    (fold / "checkpoint_final.pth").write_bytes((fold / "checkpoint_final.pth").read_bytes()[:-1000])
    assert f"{fold / 'checkpoint_final.pth'} is" in refused(*COMMAND, target, capsys=capsys)
    assert list(target.parent.iterdir()) == []

    target.write_text("precious")
    assert f"{target} exists" in refused(*COMMAND, target, capsys=capsys)
    assert target.read_text() == "precious"


def test_a_network_that_stock_nnunet_would_not_build_is_refused(tmp_path, capsys, monkeypatch):
    class Own(nnUNetTrainerCrossMatch_smoke):
        @staticmethod
        def build_network_architecture(*args, **kwargs):
            return nnUNetTrainer.build_network_architecture(*args, **kwargs)

    monkeypatch.setattr("nnunetv2_crossmatch.export.find_trainer_class", lambda name: Own)
    command = [DATASET if word == "901" else word for word in COMMAND]
    assert "builds a network of its own" in refused(*command, tmp_path / "model.zip", capsys=capsys)


def test_without_f_all_numbered_folds_are_exported_and_fold_all_only_alone(fold, tmp_path):
    def folds(name: str) -> set[str]:
        main([*COMMAND, str(tmp_path / name)])
        with ZipFile(tmp_path / name) as archive:
            return set(json.loads(archive.read(f"{STOCK}/provenance.json"))["folds"])

    fold.rename(fold.with_name("fold_all"))
    assert folds("all.zip") == {"all"}
    for number in "01":
        fold.with_name(f"fold_{number}").mkdir()
        (fold.with_name(f"fold_{number}") / "checkpoint_final.pth").hardlink_to(
            fold.with_name("fold_all") / "checkpoint_final.pth"
        )
    fold.with_name("fold_0_backup").mkdir()
    assert folds("numbered.zip") == {"0", "1"}


def test_the_postprocessing_of_the_folds_goes_along_and_its_command_is_said(fold, tmp_path, capsys):
    chosen = fold.parent / "crossval_results_folds_0" / "postprocessing.pkl"
    chosen.parent.mkdir()
    chosen.touch()
    main([*COMMAND, str(tmp_path / "model.zip")])
    inside = f"{STOCK}/{chosen.parent.name}/{chosen.name}"
    line = f"nnUNetv2_apply_postprocessing -i OUT -o OUT_PP -pp_pkl_file $nnUNet_results/{inside}"
    assert capsys.readouterr().out.splitlines()[-1].strip() == line
    assert inside in ZipFile(tmp_path / "model.zip").namelist()


def test_a_fold_that_is_named_twice_is_exported_once(fold, tmp_path):
    main([*COMMAND, str(tmp_path / "model.zip"), "-f", "0", "0"])
    with ZipFile(tmp_path / "model.zip") as archive:
        names = archive.namelist()
    assert len(set(names)) == len(names) and f"{STOCK}/fold_0/checkpoint_final.pth" in names
