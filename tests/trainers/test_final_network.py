"""The final model is the network or its moving average, whichever the fold's validation cases say."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunetv2_crossmatch.nnunet.loaders import labeled_loader
from nnunetv2_crossmatch.trainers.checkpoints import OURS, read_checkpoint
from nnunetv2_crossmatch.trainers.final_network import mean_dice, standard_error, validate
from tests.trainers.conftest import SmokeHalves, annotate_all, ignore, regions_with_ignore, start


def counts_of(*dice: float, batches: int = 20, noise: float = 0.0) -> np.ndarray:
    """Of networks with this Dice; per batch with noise of their own."""
    rng = np.random.default_rng(0)
    tp = 1000 * np.array(dice)[:, None, None] + 1000 * noise * rng.standard_normal((len(dice), batches, 2))
    return np.stack([tp, 1000 - tp, 1000 - tp], 2)


def test_dice_is_nnunets_and_a_class_that_is_nowhere_does_not_count():
    counts = np.array([[[6.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])
    assert mean_dice(counts) == [2 * 6 / (2 * 6 + 2 + 2)]


def test_a_class_without_labels_that_one_network_invents_counts_for_neither():
    invents, does_not = [[6.0, 0.0], [2.0, 9.0], [2.0, 0.0]], [[6.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    assert mean_dice(np.array([invents, does_not])).tolist() == [0.75, 0.75]


def test_the_standard_error_is_that_of_the_difference():
    """Against the spread over many drawn sets of batches."""
    rng, differences, errors = np.random.default_rng(1), [], []
    for _ in range(300):
        size = rng.uniform(500, 1500, (1, 30, 2))
        hit = size * (np.array([0.7, 0.75])[:, None, None] + 0.1 * rng.standard_normal((2, 30, 2)))
        counts = np.stack([hit, size - hit, size - hit], 2)
        network, average = mean_dice(counts.sum(1))
        differences.append(average - network)
        errors.append(standard_error(counts))
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.1)
    assert standard_error(counts_of(0.7, 0.8)) == pytest.approx(0)


class Chosen(SmokeHalves):
    """Its validation says which of the networks is better."""

    difference = 0.1

    def validation_step(self, batch):
        result = super().validation_step(batch)
        if self.network is self.method.teacher.network:
            for name in ("fp_hard", "fn_hard"):
                result[name] = np.zeros_like(result[name]) if self.difference > 0 else 1000 + result[name]
            result["tp_hard"] = 1 + result["tp_hard"]
        return result


def finished(make_trainer, cls: type, **options):
    trainer = make_trainer(cls, "2d", **options)
    trainer.run_training()
    said = [line for line in Path(trainer.log_file).read_text().splitlines() if "The final model is" in line]
    return trainer, read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth"), said


def is_average(content: dict) -> bool:
    average = content[OURS]["state"]
    return all(torch.equal(v, average[f"teacher.network.{k}"]) for k, v in content["network_weights"].items())


def test_the_better_one_is_in_the_final_checkpoint_and_stays_when_continued(make_trainer):
    trainer, final, said = finished(make_trainer, Chosen, fold=0)
    assert len(said) == 1 and "is the moving average of the network: on 2 validation batches" in said[0]
    assert is_average(final)
    assert all(torch.equal(v, final["network_weights"][k]) for k, v in trainer.network.state_dict().items())
    best = read_checkpoint(Path(trainer.output_folder) / "checkpoint_best.pth")
    assert not is_average(best), "that is the network of its epoch"
    again = make_trainer(Chosen, "2d", fold=0, seed=1)
    maybe_load_checkpoint(again, continue_training=True, validation_only=False)
    again.run_training()
    content = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert all(torch.equal(v, final["network_weights"][k]) for k, v in content["network_weights"].items())
    assert "The final model" not in Path(again.log_file).read_text()


def test_the_network_stays_where_its_average_is_worse_or_nobody_can_tell(make_trainer):
    worse = type("Chosen", (Chosen,), {"difference": -0.1})
    trainer, final, said = finished(make_trainer, worse, fold=0)
    assert "is the network, not its average" in said[0] and not is_average(final)
    shutil.rmtree(trainer.output_folder)
    _, final, said = finished(make_trainer, Chosen, fold="all")
    assert not said and not is_average(final), "fold all has no held-out cases"
    supervised = type("Chosen", (Chosen,), {"ready_at": 5})
    _, final, said = finished(make_trainer, supervised, fold=0)
    assert not said and not is_average(final), "without self-training it is stock nnU-Net"


@pytest.mark.parametrize("edit", [lambda *_: None, ignore, regions_with_ignore])
def test_both_see_the_same_batches(make_trainer, dataset, edit):
    annotate_all(dataset)
    trainer = start(make_trainer(SmokeHalves, "2d", fold=0, edit=edit))
    network, loader = trainer.network, labeled_loader(trainer.dataloader_val)
    counts = validate(trainer, (network, network), loader)
    assert counts.shape == (2, trainer.num_val_iterations_per_epoch, 3, 2) and trainer.network is network
    assert np.array_equal(*counts) and counts[:, :, 1:].any() and not np.array_equal(counts[0, 0], counts[0, 1])
    assert np.array_equal(counts, validate(trainer, (network, network), loader)), "also when it is continued"
