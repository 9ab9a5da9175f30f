from nnunetv2_crossmatch.nnunet.trainer_class import find_trainer_class


def test_the_look_up_says_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class nnUNetTrainerMine(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert find_trainer_class("nnUNetTrainerMine").__name__ == "nnUNetTrainerMine"
    assert capsys.readouterr().out == ""
