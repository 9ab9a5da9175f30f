"""Which network a training hands on: the one that was trained, or its moving average."""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import nn

from nnunetv2_crossmatch.nnunet.loaders import draw_patches
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled

STANDARD_ERRORS = 2.0  # of the difference, above which it is more than noise


def validate(
    trainer: nnUNetTrainerWithUnlabeled, networks: Sequence[nn.Module], loader: nnUNetDataLoader
) -> np.ndarray:
    """nnU-Net's online validation of each network on the same batches, as many as it takes in an epoch.

    Args:
        networks: not wrapped; they stay in evaluation mode.
        loader: nnU-Net's of the fold's validation cases.

    Returns:
        true positive, false positive and false negative voxels (networks, batches, 3, foreground classes or regions);
        under DDP the batches of all processes, the same on each.
    """
    trained, counts = trainer.network, []
    first = trainer._seed + trainer.local_rank * trainer.num_val_iterations_per_epoch
    try:
        for i in range(trainer.num_val_iterations_per_epoch):  # one at a time: together they may not fit into memory
            (batch,) = draw_patches(loader, loader.batch_size, first + i)
            of_networks = []
            for network in networks:
                trainer.network = network.eval()
                with torch.no_grad():
                    of_batch = trainer.validation_step(deepcopy(batch))  # where labels are ignored it changes them
                of_networks.append([of_batch[name] for name in ("tp_hard", "fp_hard", "fn_hard")])
            counts.append(of_networks)
    finally:
        trainer.network = trained
    everyones = [counts]
    if trainer.is_ddp:
        everyones = [[]] * dist.get_world_size()
        dist.all_gather_object(everyones, counts)
    return np.concatenate([np.array(of_process, float) for of_process in everyones]).swapaxes(0, 1)


def mean_dice(counts: np.ndarray) -> np.ndarray:
    """Over the classes, as nnU-Net's, of all networks on the same classes: those that each has, or there are labels of.

    Args:
        counts: (networks, ..., 3, classes) as :func:`validate` has them.
    """
    tp, fp, fn = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore"):
        dice = 2 * tp / (2 * tp + fp + fn)
    return np.nanmean(np.where(np.isnan(dice).any(0), np.nan, dice), -1)


def standard_error(counts: np.ndarray) -> float:
    """Of the second network's mean Dice less the first one's, by a jackknife over the batches of :func:`validate`.

    The noise of the patches that were drawn; what other patients would say it cannot know.
    """
    first, second = mean_dice(counts.sum(1, keepdims=True) - counts)  # without each batch
    without = second - first
    return float(np.sqrt((len(without) - 1) * without.var()))
