"""nnU-Net's logger, which was not made for values that it does not know."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from nnunetv2_crossmatch.nnunet.training_log import PREFIX

TENSORBOARD = "nnUNet_tensorboard_enabled"  # as nnU-Net's nnUNet_wandb_enabled


def _values(logger: MetaLogger) -> dict[str, list]:
    """Every value that nnU-Net keeps and saves in its checkpoints."""
    return logger.local_logger.my_fantastic_logging


def logged_curves(logger: MetaLogger) -> dict[str, list]:
    """Curves of the unlabeled part, a value per epoch, without their prefix."""
    return {key.removeprefix(PREFIX): values for key, values in _values(logger).items() if key.startswith(PREFIX)}


def log_curves(
    logger: MetaLogger, curves: Mapping[str, float | list[float]], epoch: int, classes: Sequence[str]
) -> None:
    """Log one value per curve and epoch into nnU-Net's ``MetaLogger``.

    Its local logger refuses keys it was not made with, and draws only as many epochs as its shortest list
    has: a curve that begins late is filled with nan up to here, one that pauses gets nan. Its others (W&B) get a
    curve per class, named by the class: ``MetaLogger.log`` would count from 1, but the background is among ours.
    """
    for name in sorted(logged_curves(logger).keys() | curves.keys()):
        values = _values(logger).setdefault(PREFIX + name, [])
        values.extend([float("nan")] * (epoch - len(values)))
        logger.local_logger.log(PREFIX + name, curves.get(name, float("nan")), epoch)
    for name, value in curves.items():
        if isinstance(value, list):
            scalars = {f"{name}/{label}": of_class for label, of_class in zip(classes, value, strict=True)}
        else:
            scalars = {name: value}
        for key, other in product(scalars, logger.loggers):
            other.log(PREFIX + key, scalars[key], epoch)


class TensorBoardLogger:
    """One of ``MetaLogger.loggers``, as nnU-Net's for W&B: scalars of each epoch into ``folder/tensorboard``.

    Raises:
        RuntimeError: TensorBoard is not installed.
    """

    def __init__(self, folder: str) -> None:
        if find_spec("tensorboard") is None:
            raise RuntimeError(f"{TENSORBOARD}=1 needs TensorBoard: pip install tensorboard")
        self._folder = Path(folder) / "tensorboard"
        self._writer: Any = None

    def log(self, key: str, value: Any, step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # what was written after the checkpoint that is gone on from does not count
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def update_config(self, config: dict) -> None:
        """Only W&B has a place for it."""

    def log_summary(self, key: str, value: Any) -> None:
        """Only W&B has a place for it."""


def add_tensorboard(logger: MetaLogger) -> None:
    """If the environment asks for it, in nnU-Net's manner."""
    if logger._is_logger_enabled(TENSORBOARD):
        logger.loggers.append(TensorBoardLogger(logger.output_folder))


def convert_values(logger: MetaLogger, convert: Callable[[Any], Any]) -> None:
    """Replace all that nnU-Net has logged by what ``convert`` makes of it."""
    values = _values(logger)
    values.update(convert(values))
