"""Whatever ends a training, --c goes on from a whole checkpoint as if nothing had; what does not fit is refused."""

import contextlib
import os
import pickletools
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_crossmatch.trainers.checkpoints import OURS, CheckpointError, read_checkpoint
from tests.trainers.conftest import EAGER, ONLINE, Smoke, SmokeEMA, SmokeHalves, changed, write_labels

TIMES = ("epoch_start_timestamps", "epoch_end_timestamps")


class Killed(BaseException):
    pass


def one_sample(plans, dataset_json):
    """A CutMix partner then is of the step before."""
    plans["configurations"]["2d"]["batch_size"] = 1


def killed(cls: type, after: int | None = None, while_saving: str = "", save_every: int = 1) -> type:
    """A trainer that dies after so many epochs, before or while it writes the named checkpoint."""

    class Mortal(cls):
        epochs = 4

        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.save_every = save_every

        def save_checkpoint(self, filename):
            if self.current_epoch + 1 == after and while_saving and filename.endswith(while_saving):
                raise Killed
            super().save_checkpoint(filename)

        def on_epoch_end(self):
            super().on_epoch_end()
            if self.current_epoch == after and not while_saving:
                raise Killed

    Mortal.__name__ = cls.__name__
    return Mortal


def train(make_trainer, cls: type, *, go_on: bool = False, **options) -> Path:
    """Folder of a run; with another seed when it goes on, since a new process has one."""
    trainer = make_trainer(cls, "2d", seed=int(go_on), edit=one_sample, **options)
    maybe_load_checkpoint(trainer, continue_training=go_on, validation_only=False)
    with contextlib.suppress(Killed):
        trainer.run_training()
    return Path(trainer.output_folder)


def assert_same(ours: object, theirs: object, where: str = "") -> None:
    if isinstance(ours, dict):
        assert isinstance(theirs, dict) and ours.keys() == theirs.keys(), where
        for key in ours.keys() - set(TIMES):
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert isinstance(theirs, (list, tuple)) and len(ours) == len(theirs), where
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(ours, torch.Tensor):
        assert isinstance(theirs, torch.Tensor) and torch.equal(ours, theirs), where
    else:
        assert ours == theirs or (np.isnan(ours) and np.isnan(theirs)), where


def assert_goes_on_as_if_nothing_had_happened(make_trainer, cls: type, deaths: list[dict], **options) -> None:
    finals = []
    for death in [{}, *deaths]:
        folder = train(make_trainer, killed(cls, **death), **options)
        if death:
            assert not (folder / "checkpoint_final.pth").exists()
            train(make_trainer, killed(cls, save_every=death.get("save_every", 1)), go_on=True, **options)
        finals.append([read_checkpoint(folder / f"checkpoint_{name}.pth") for name in ("final", "best")])
        shutil.rmtree(folder)
    for final in finals[1:]:
        assert_same(final, finals[0])


@pytest.mark.parametrize("name", ONLINE)
def test_a_continued_run_ends_as_an_uninterrupted_one_to_the_bit(make_trainer, name):
    """Weights, teacher, heads, banks, optimizer, schedule, curves; 2D, one sample a batch."""
    cls = changed(recursive_find_trainer_class_by_name(f"{name}_smoke"), **EAGER, pretrain=0.5)
    assert_goes_on_as_if_nothing_had_happened(make_trainer, cls, [{"after": 2}])


def test_so_does_one_on_pseudo_labels(dataset, make_trainer):
    write_labels(dataset, "2d")
    cls = recursive_find_trainer_class_by_name("nnUNetTrainerPseudoLabel_smoke")
    assert_goes_on_as_if_nothing_had_happened(make_trainer, cls, [{"after": 2}], fold=0)


def test_after_any_epoch_and_between_two_checkpoints(make_trainer):
    deaths = [
        {"after": 1},
        {"after": 3},
        {"after": 3, "save_every": 2},  # an epoch is trained again
        {"after": 2, "while_saving": "best.pth"},  # checkpoint_latest is there, and was better than the best
        {"after": 4, "while_saving": "final.pth"},
    ]
    best_each_time = type("Better", (SmokeEMA,), {"on_validation_epoch_end": better_every_epoch})
    assert_goes_on_as_if_nothing_had_happened(make_trainer, best_each_time, deaths)


@pytest.mark.parametrize("cls", [SmokeHalves, SmokeEMA])
def test_a_checkpoint_from_before_readiness_is_continued_or_refused_with_a_reason(make_trainer, cls):
    folder = train(make_trainer, killed(cls, after=1))
    file = folder / "checkpoint_latest.pth"
    content = torch.load(file, weights_only=True)
    readiness = content[OURS].pop("readiness")
    torch.save(content, file)
    if cls is SmokeEMA:
        train(make_trainer, cls, go_on=True)
        assert (folder / "checkpoint_final.pth").exists()
    else:
        with pytest.raises(CheckpointError, match="earlier version's CrossMatch"):
            train(make_trainer, cls, go_on=True)
        state = {name: value for name, value in content[OURS]["state"].items() if not name.startswith("teacher.")}
        content[OURS] |= {"readiness": readiness, "state": state}  # as of methods that were their own teachers
        torch.save(content, file)
        with pytest.raises(CheckpointError, match="earlier version's CrossMatch"):
            train(make_trainer, cls, go_on=True)


class Phased(changed(SmokeHalves, p_foreground=0.33)):
    """Begins self-training with epoch 1 on halves of two samples, three a step left over; epoch 2 does harm."""

    ready_at = 1

    def on_validation_epoch_end(self, outputs):
        super().on_validation_epoch_end(outputs)
        dice = [0.9, 0.9] if self.current_epoch < 2 else [0.1, 0.1]
        self.logger.local_logger.my_fantastic_logging["dice_per_class_or_region"][-1] = dice


def test_through_both_phases_and_back(make_trainer, monkeypatch):
    def two_samples(plans, dataset_json):
        plans["configurations"]["2d"]["batch_size"] = 2

    monkeypatch.setattr(sys.modules[__name__], "one_sample", two_samples)
    # also with an epoch trained again, of which what was found in the unlabeled scans is on the disk
    deaths = [{"after": 1}, {"after": 2}, {"after": 3}, {"after": 3, "save_every": 2}]
    assert_goes_on_as_if_nothing_had_happened(make_trainer, Phased, deaths)


def better_every_epoch(trainer, outputs):
    trainer.logger.log("mean_fg_dice", (trainer.current_epoch + 1) / 10, trainer.current_epoch)
    trainer.logger.log("dice_per_class_or_region", [0.0], trainer.current_epoch)
    trainer.logger.log("val_losses", 0.0, trainer.current_epoch)


def test_every_epoch_draws_other_numbers(make_trainer):
    seen = []

    class Watched(Smoke):
        def train_step(self, batch):
            seen.append(float(batch["data"].sum()))
            return super().train_step(batch)

    make_trainer(Watched).run_training()
    assert len(set(seen)) == len(seen) == 6


@pytest.fixture
def folder(make_trainer) -> Path:
    """Of a run that was killed after two epochs; the best one is the first's."""
    trainer = make_trainer(killed(Smoke, after=2), "2d")
    with pytest.raises(Killed):
        trainer.run_training()
    return Path(trainer.output_folder)


def test_a_file_that_was_not_written_to_its_end_is_not_left_in_place(folder, make_trainer, monkeypatch):
    latest = folder / "checkpoint_latest.pth"
    before, save = latest.read_bytes(), torch.save

    def full_disk(content, file):
        save(content, file)
        if OURS in content:
            file.truncate(1000)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    trainer = make_trainer(Smoke, "2d")
    trainer.initialize()
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(latest))
    assert latest.read_bytes() == before
    assert not list(folder.glob("*.tmp"))


def truncated(file: Path) -> None:
    with open(file, "r+b") as f:
        f.truncate(file.stat().st_size // 2)


def damaged(part: str, file: Path) -> None:
    """As after a disk error: the archive's table is there, some of a part's bytes are not what they were."""
    with zipfile.ZipFile(file) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith(part))
    with open(file, "r+b") as f:
        f.seek(entry.header_offset + len(entry.filename) + 150)
        f.write(b"\xff" * 16)


HARM = [truncated, partial(damaged, "data.pkl"), partial(damaged, "data/0"), lambda file: file.write_bytes(b"")]


@pytest.mark.parametrize("harm", HARM)
def test_a_broken_checkpoint_is_named_with_the_one_to_go_on_from(folder, make_trainer, harm):
    latest = folder / "checkpoint_latest.pth"
    harm(latest)
    with pytest.raises(CheckpointError, match=rf"{latest} is .* from checkpoint_best.pth, after epoch \d"):
        train(make_trainer, Smoke, go_on=True)
    os.remove(latest)
    assert (train(make_trainer, Smoke, go_on=True) / "checkpoint_final.pth").exists()


def test_without_another_checkpoint_the_fix_is_to_train_again(folder, make_trainer):
    (folder / "checkpoint_best.pth").unlink()
    truncated(folder / "checkpoint_latest.pth")
    with pytest.raises(CheckpointError, match="train from scratch; there is no other"):
        train(make_trainer, Smoke, go_on=True)


def test_two_broken_checkpoints_are_both_named(folder, make_trainer):
    for name in ("latest", "best"):
        truncated(folder / f"checkpoint_{name}.pth")
    with pytest.raises(CheckpointError, match=r"latest.pth is truncated.*and checkpoint_best.pth, which cannot"):
        train(make_trainer, Smoke, go_on=True)


def stock(folder: Path, make_trainer) -> None:
    trainer = make_trainer(nnUNetTrainer, "2d")
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 1, 1
    trainer.run_training()
    shutil.copy(Path(trainer.output_folder) / "checkpoint_final.pth", folder / "checkpoint_latest.pth")


def older_version(folder: Path, make_trainer) -> None:
    content = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    torch.save({**content, OURS: {**content[OURS], "format": 0}}, folder / "checkpoint_latest.pth")


@pytest.mark.parametrize("write", [stock, older_version])
def test_a_foreign_checkpoint_is_not_trained_on(folder, make_trainer, write):
    write(folder, make_trainer)
    with pytest.raises(CheckpointError, match=r"latest.pth is of another trainer .* or of another version"):
        train(make_trainer, Smoke, go_on=True)


def test_another_method_is_not_trained_on(folder, make_trainer):
    other = train(make_trainer, changed(recursive_find_trainer_class_by_name("nnUNetTrainerFixMatch_smoke"), **EAGER))
    shutil.copy(other / "checkpoint_final.pth", folder / "checkpoint_latest.pth")
    with pytest.raises(CheckpointError, match="is of FixMatch, not of CrossMatch"):
        train(make_trainer, Smoke, go_on=True)


def test_other_constants_are_said_and_a_state_that_does_not_fit_is_refused(folder, make_trainer):
    trainer = make_trainer(changed(Smoke, threshold=0.5), "2d")
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    assert "this training began with {'threshold': 0.0}" in Path(trainer.log_file).read_text()
    file = folder / "checkpoint_latest.pth"
    content = torch.load(file, weights_only=True)
    content[OURS]["state"]["teacher.weight"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="does not fit"):
        maybe_load_checkpoint(make_trainer(Smoke, "2d"), True, False)


def test_a_checkpoint_is_plain_data_that_every_torch_reads(folder):
    for file in folder.glob("checkpoint_*.pth"):
        assert torch.load(file, weights_only=True)["trainer_name"] == "Smoke"
        with zipfile.ZipFile(file) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        named = {argument for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
        known = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
        assert all(name in known or name.endswith("Storage") for name in named)


def test_what_cannot_be_read_for_another_reason_is_not_called_damaged(folder, make_trainer, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        read_checkpoint(folder / "checkpoint_latest.pth")
