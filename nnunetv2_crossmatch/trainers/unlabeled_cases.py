"""What every trainer that uses unlabeled cases does around its training."""

import random
import time
from collections import deque
from functools import cached_property
from os.path import join
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_crossmatch.nnunet.loaders import Augmenter
from nnunetv2_crossmatch.nnunet.logger import add_tensorboard, convert_values
from nnunetv2_crossmatch.preprocessing.check import check_dataset
from nnunetv2_crossmatch.preprocessing.dataset import Dataset, Planned, raw_folder_at_hand
from nnunetv2_crossmatch.preprocessing.manifest import Manifest
from nnunetv2_crossmatch.preprocessing.reconcile import prepare_splits
from nnunetv2_crossmatch.preprocessing.splits import validation_patients, without_patients
from nnunetv2_crossmatch.preprocessing.unlabeled import unlabeled_cases_for_training
from nnunetv2_crossmatch.trainers.checkpoints import OURS, CheckpointError, complete_checkpoint, plain, read_checkpoint
from nnunetv2_crossmatch.trainers.records import record_resources, write_training
from nnunetv2_crossmatch.utilities.durations import duration
from nnunetv2_crossmatch.utilities.main_guard import require_main_guard
from nnunetv2_crossmatch.utilities.versions import versions

WARNINGS_IN_LOG = 10
MAX_SKIPPED = 50  # steps in a row; mixed precision skips one or two dozen until it has found its scale


class nnUNetTrainerWithUnlabeled(nnUNetTrainer):
    """nnU-Net with as many epochs as the class says, and the unlabeled cases of its fold, checked.

    Continued with ``--c``, a training goes on as if nothing had ended it: checkpoints are written whole or not at
    all, and each epoch draws its random numbers from the run's seed and its own number. On the CPU without workers
    (``nnUNet_n_proc_DA=0``) the result is the same to the bit; workers draw augmentation of their own.
    """

    epochs = 1000
    iterations_per_epoch = 250
    val_iterations_per_epoch = 50
    _best_ema: float | None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise RuntimeError(
                f"{type(self).__name__} cannot train the second stage of a cascade ({configuration}). "
                "Train 2d, 3d_fullres or 3d_lowres with it."
            )
        if self.local_rank == 0:
            add_tensorboard(self.logger)
        self.num_epochs = self.epochs
        self.num_iterations_per_epoch = self.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.val_iterations_per_epoch
        self.save_every = 10
        self._seed = int(np.random.randint(2**31))
        self._skipped_in_a_row = 0
        self._started: deque[float] = deque(maxlen=6)  # the last epochs, seconds

    @classmethod
    def has_stock_network(cls) -> bool:
        """Whether the network is the one that stock nnU-Net would build from the plans."""
        return cls.build_network_architecture is nnUNetTrainer.build_network_architecture

    @cached_property
    def planned(self) -> Planned:
        """What is trained; without a raw folder where that is not at hand (perhaps only test scans are)."""
        raw = raw_folder_at_hand(self.plans_manager.dataset_name)
        dataset = Dataset(raw, Path(self.preprocessed_dataset_folder_base), self.dataset_json)
        return Planned(dataset, self.plans_manager, self.configuration_name)

    def get_dataloaders(self) -> tuple[Augmenter, Augmenter]:
        train, val = super().get_dataloaders()
        if isinstance(train, SingleThreadedAugmenter):
            for transform in train.data_loader.transforms.transforms:
                blur = transform.transform if isinstance(transform, RandomTransform) else transform
                if isinstance(blur, GaussianBlurTransform):
                    blur.benchmark = False  # it picks its algorithm by the clock
        return train, val

    def run_training(self) -> None:
        require_main_guard()  # or it would fail after the last epoch, when nnU-Net starts processes to validate
        try:
            super().run_training()
        except torch.cuda.OutOfMemoryError as e:
            raise RuntimeError(self._does_not_fit()) from e

    def _does_not_fit(self) -> str:
        """What to do when the GPU's memory is not enough."""
        plans, less = self.plans_manager, f"{self.plans_manager.plans_name}Smaller"
        of = f"-d {self.planned.dataset.id}"
        gigabytes = torch.cuda.get_device_properties(self.device).total_memory / 2**30
        return (
            f"{type(self).__name__} does not fit into the memory of the GPU. Look with nvidia-smi whether another "
            "program holds some of it. What was trained until the last checkpoint is kept; the same command with --c "
            f"goes on from there. If the GPU is too small, plan for two thirds of it and train with -p {less}:\n"
            f"nnUNetv2_plan_experiment {of} -pl {plans.plans['experiment_planner_used']} "
            f"-gpu_memory_target {gigabytes * 2 / 3:.0f} -overwrite_plans_name {less}\n"
            f"nnUNetv2_preprocess {of} -plans_name {less} -c {self.configuration_name}\n"
            f"nnUNetv2_crossmatch preprocess {of} -p {less} -c {self.configuration_name}\n"
            "Or train nnUNetTrainerCrossMatch, whose steps need hardly more memory than stock nnU-Net's."
        )

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0:
            for unfinished in Path(self.output_folder).glob("checkpoint_*.tmp"):  # of a process that was killed
                unfinished.unlink()

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        self._started.append(time.monotonic())
        for_python, for_numpy, for_torch = np.random.SeedSequence(
            [self._seed, self.current_epoch, self.local_rank]
        ).generate_state(3)
        random.seed(int(for_python))
        np.random.seed(for_numpy)
        torch.manual_seed(int(for_torch))

    def _count_skipped(self, finite: bool, loss: float) -> None:
        """Raises RuntimeError when nothing was learned for so long that nothing will be."""
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise RuntimeError(
                f"The gradients of {MAX_SKIPPED} steps in a row were not finite (loss {loss}) and were skipped. The "
                f"checkpoints are from before. Look at the curves in {self.output_folder} for what grew, check the "
                "scans (nnUNetv2_crossmatch check), and train a subclass with a smaller initial_lr."
            )

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            record_resources(Path(self.output_folder), self.device)
            if len(self._started) > 2 and (left := self.num_epochs - self.current_epoch):
                self.print_to_log_file(f"about {duration(left * float(np.median(np.diff(self._started))))} left")

    def training_state(self) -> dict[str, Any]:
        """What a continued training needs beyond nnU-Net's checkpoint: plain data and tensors."""
        return {"method": type(self).__name__.partition("_")[0], "seed": self._seed}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Undo :meth:`training_state`.

        Raises:
            CheckpointError: of another method.
        """
        method = self.training_state()["method"]
        if state["method"] != method:
            raise CheckpointError(
                f"The checkpoint in {self.output_folder} is of {state['method']}, not of {method}. Continue it "
                "with its own trainer, or move it away and train from scratch."
            )
        self._seed = state["seed"]

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint plus :meth:`training_state`, written beside and renamed."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        # as a training that goes on from the file has it: its averages are the same to the bit
        convert_values(self.logger, plain)
        unfinished = Path(filename + ".tmp")
        try:
            super().save_checkpoint(str(unfinished))
            complete_checkpoint(unfinished, self.training_state(), Path(filename))
        finally:
            unfinished.unlink(missing_ok=True)  # of a full disk

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        if not self.was_initialized:
            self.initialize()
        # nnU-Net reads the file again, with weights_only=False; by then it is known to be plain data
        self.load_training_state(read_checkpoint(Path(filename_or_checkpoint))[OURS])
        super().load_checkpoint(filename_or_checkpoint)
        scores = self.logger.get_value("ema_fg_dice", step=None)
        # nnU-Net writes checkpoint_latest before it compares
        if scores and (self._best_ema is None or scores[-1] > self._best_ema):
            self._best_ema = scores[-1]
            self.current_epoch -= 1  # nnU-Net saves the next one's number
            self.save_checkpoint(join(self.output_folder, "checkpoint_best.pth"))
            self.current_epoch += 1

    def _prepare_unlabeled(self) -> list[str]:
        """Splits and unlabeled cases, made now if no command made them; every complaint comes from here."""
        planned = self.planned
        preprocessed = planned.dataset.preprocessed
        labeled = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        patients = prepare_splits(planned.dataset, labeled, self.fold)
        held_out = validation_patients(preprocessed, self.fold, patients)
        cases = unlabeled_cases_for_training(planned, default_num_processes)
        used = without_patients(cases, patients, held_out)
        if not used:
            raise ValueError(f"Every unlabeled scan is of a patient that fold {self.fold} validates. Train fold all.")
        self._check(planned.dataset)
        self.print_to_log_file(
            f"{len(used)} unlabeled cases; {len(cases) - len(used)} more belong to patients of the validation set"
        )
        if self.local_rank == 0:
            training, validation = (sorted(part) for part in self.do_split())
            known = Manifest.read(planned.unlabeled_folder).cases
            hashes = {case: known[case]["sha256"] for case in used}
            write_training(Path(self.output_folder), versions(), training, validation, hashes)
        return used

    def _check(self, dataset: Dataset) -> None:
        findings = check_dataset(dataset, default_num_processes, self.fold)
        findings.raise_errors(dataset.name)
        for warning in findings.warnings[:WARNINGS_IN_LOG]:
            self.print_to_log_file("warning:", warning)
        if (more := len(findings.warnings) - WARNINGS_IN_LOG) > 0:
            self.print_to_log_file(f"{more} more warnings: nnUNetv2_crossmatch check -d {dataset.name}")
