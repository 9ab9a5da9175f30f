import pytest

from nnunetv2_crossmatch import trainers
from nnunetv2_crossmatch.trainers import METHODS
from nnunetv2_crossmatch.trainers.names import meant_trainer


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("nnUNetTrainerCrosMatch", "nnUNetTrainerCrossMatch"),
        ("nnUNetTrainerCrosMatch_50epochs", "nnUNetTrainerCrossMatch_50epochs"),
        ("nnUNetTrainerUATM_smoke", "nnUNetTrainerUAMT_smoke"),
        ("nnunettrainercrossmatch", "nnUNetTrainerCrossMatch"),
        ("nnUNetTrainrCPS", "nnUNetTrainerCPS"),
        ("CPS", "nnUNetTrainerCPS"),
        ("nnUNetTrainr", "nnUNetTrainer"),
        ("nnUNetTrainerNoMiroring", "nnUNetTrainerNoMirroring"),  # of nnU-Net
        ("nnUNetTrainerLiver", None),  # the prefix alone makes nothing alike
        ("nnUNetTrainerX", None),
    ],
)
def test_a_misspelt_trainer_is_recognized(name, meant):
    assert meant_trainer(name, METHODS) == meant


@pytest.mark.parametrize(
    "name",
    [
        *METHODS,
        "nnUNetTrainer",
        "nnUNetTrainer_5epochs",
        "nnUNetTrainerNoMirroring",
        "nnUNetTrainerCrossMatch_7epochs",
        "nnUNetTrainerPseudoLabel_round2_of_nnUNetTrainer",
    ],
)
def test_a_trainer_that_there_is_means_itself(name):
    assert meant_trainer(name, METHODS) is None


def test_a_trainer_in_an_external_folder_is_one(tmp_path, monkeypatch):
    assert meant_trainer("nnUNetTrainerCrossMatchy", METHODS) == "nnUNetTrainerCrossMatch"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_text("class nnUNetTrainerCrossMatchy(nnUNetTrainerCrossMatch):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert meant_trainer("nnUNetTrainerCrossMatchy", METHODS) is None


def test_nnunets_own_commands_get_the_question_once_and_find_no_such_trainer(capsys):
    for _ in range(2):
        assert not hasattr(trainers, "nnUNetTrainerUniMach")
    assert capsys.readouterr().err == "No trainer is called nnUNetTrainerUniMach. Did you mean nnUNetTrainerUniMatch?\n"
    assert not hasattr(trainers, "nnUNetTrainerNoMirroring") and not hasattr(trainers, "no_trainer")
    assert capsys.readouterr().err == ""
