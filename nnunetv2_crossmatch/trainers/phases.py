"""Stock nnU-Net until the network is ready, then self-training, and back if it does harm."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import nn

from nnunetv2_crossmatch.methods import Method
from nnunetv2_crossmatch.networks.split_unet import SplitUNet
from nnunetv2_crossmatch.nnunet.loaders import Augmenter, Halves, draw_patches, labeled_loader, without_intensity
from nnunetv2_crossmatch.nnunet.logger import logged_curves
from nnunetv2_crossmatch.trainers.checkpoints import OURS, read_checkpoint
from nnunetv2_crossmatch.trainers.final_network import STANDARD_ERRORS, mean_dice, standard_error, validate
from nnunetv2_crossmatch.trainers.foreground import Foreground
from nnunetv2_crossmatch.trainers.probe import Probe, patches_wanted
from nnunetv2_crossmatch.trainers.readiness import Readiness
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled


class Phases:
    """Leads a training through its phases; for a method that does not wait it does nothing.

    Args:
        trainer: whose epochs these are; its checkpoint is the way back.
        method: told when the unlabeled scans teach, and which classes.
        network: the trainer's, not wrapped; ``split_network`` calls it in halves.
        ready_at: see :class:`Readiness`.
    """

    def __init__(
        self,
        trainer: nnUNetTrainerWithUnlabeled,
        method: Method,
        network: nn.Module,
        split_network: SplitUNet,
        ready_at: int | None,
    ) -> None:
        self._trainer = trainer
        self._method = method
        self._network = network
        self._split_network = split_network
        self._halves: list[Halves] = []
        self.readiness = Readiness(_foreground_names(trainer), ready_at)
        self.probe: Probe | None = None  # -> draw_probe; of the first process
        self.labels: dict[int, torch.Tensor] = {}  # of the probe's slices, every tenth of the training
        self.slices = torch.empty(0)  # those that the labels are of
        self.p_foreground: float = getattr(method.constants, "p_foreground", 0.0) if self.exist else 0.0
        self.foreground = Foreground(
            Path(trainer.output_folder) / "unlabeled_foreground",
            trainer.configuration_manager.patch_size,
            trainer.batch_size,
            trainer.label_manager,
            trainer.device,
        )

    @property
    def exist(self) -> bool:
        """Whether the method waits for the network, and has a loss to wait with."""
        return self._method.waits and any(self._method.weights_after_warmup(1.0).values())

    @property
    def snapshot(self) -> Path:
        """The training as it was when self-training began."""
        # no checkpoint_*: --c never goes on from it
        return Path(self._trainer.output_folder) / "before_self_training.pth"

    def save_snapshot(self) -> None:
        self._trainer.save_checkpoint(str(self.snapshot))

    def begin(self) -> None:
        """The files beside the checkpoints are as the training has them that begins or goes on."""
        if self._trainer.local_rank == 0:
            if self._trainer.current_epoch == 0:
                self.snapshot.unlink(missing_ok=True)
            self.foreground.restore()

    def end(self) -> None:
        """No such file is left."""
        if self._trainer.local_rank == 0:
            self.snapshot.unlink(missing_ok=True)
            self.foreground.remove()

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes: plain data and tensors."""
        shown = {"labels": self.labels, "slices": self.slices}
        return {"readiness": self.readiness.state(), "foreground": self.foreground.state(), **shown}

    def load(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self.readiness.load(state["readiness"])
        if "foreground" in state:  # an earlier version's has none
            self.foreground.load(state["foreground"])
        if "slices" in state:
            self.labels, self.slices = state["labels"], state["slices"]

    def stages(self) -> list[tuple[float, str]]:
        """(epoch, name) of each stage that the method itself has, and of each phase so far."""
        own = [(start * self._trainer.num_epochs, name.partition(":")[0]) for start, name in self._method.stages]
        return [*(own or [(0.0, "nnU-Net")]), *self.readiness.stages()] if self.exist else own

    def draw_probe(self, unlabeled: nnUNetDataLoader, labeled: nnUNetDataLoader) -> None:
        """Patches to look at after each epoch, drawn anywhere in the cases of these loaders."""
        trainer, self._unlabeled = self._trainer, unlabeled._data
        if not self.exist or trainer.local_rank != 0:
            return
        count = patches_wanted(trainer.configuration_manager.patch_size, trainer.batch_size)
        images = draw_patches(unlabeled, count, trainer._seed)
        labels = draw_patches(without_intensity(labeled, trainer.label_manager), 4 * count, trainer._seed)
        self.probe = Probe(
            [(batch["data"], batch["target"] >= 0) for batch in images],
            [batch["target"] for batch in labels],
            trainer.label_manager,
        )

    def measure(self) -> dict[str, list[float]]:
        """The curves of the probe, as :meth:`Probe.measure`; nothing when nobody asks any more."""
        if self.probe is None or self.readiness.ended is not None:
            return {}
        average = self._split_network.twin(self._method.teacher.network)
        try:
            curves = self.probe.measure(self._split_network, average, self._trainer.device)
        except RuntimeError as e:  # out of memory: the other processes wait for this one
            self._trainer.print_to_log_file(f"warning: the unlabeled patches could not be looked at: {e}")
            return {}
        if self._is_tenth:
            slices = torch.from_numpy(self.probe.slices)
            if not torch.equal(slices, self.slices):  # the training goes on with other scans
                self.slices, self.labels = slices, {}
            self.labels[self._trainer.current_epoch] = torch.from_numpy(self.probe.labels)
        return curves

    @property
    def _is_tenth(self) -> bool:
        return 10 * self._trainer.current_epoch % self._trainer.num_epochs < 10

    def halve(self, labeled: Augmenter, unlabeled: Augmenter) -> tuple[Augmenter | Halves, Augmenter | Halves]:
        """Their batches in halves during self-training, if the method takes them so."""
        if not self._method.halves:
            return labeled, unlabeled
        if self._trainer.batch_size == 1:
            self._trainer.print_to_log_file(
                "warning: one sample a step cannot be halved, so a step of self-training costs 2.33 of nnU-Net's "
                "and not 1.17"
            )
        halves = Halves(labeled, larger_first=True), Halves(unlabeled, larger_first=False)
        self._halves = list(halves)
        return halves

    def begin_epoch(self) -> None:
        """Let the unlabeled scans teach, class by class, or no more; the same on every process."""
        if not self.exist:
            return
        trainer, readiness = self._trainer, self.readiness
        before = readiness.active
        decided: list[Any] = [None]
        if trainer.local_rank == 0:
            for message in readiness.update(trainer.current_epoch, trainer.num_epochs, self._curves()):
                trainer.print_to_log_file(message)
            decided = [readiness.state()]
        if trainer.is_ddp:
            dist.broadcast_object_list(decided)
            readiness.load(decided[0])
        if readiness.active and not before:
            self.save_snapshot()
        if before and not readiness.active:
            self._turn_back()
        if readiness.active and readiness.taught and (self._is_tenth or not len(self.foreground)):
            self._find_foreground()
        self.tell_method()

    def _find_foreground(self) -> None:
        """Where the taught classes are, in the next unlabeled scans; the first process looks."""
        trainer, average = self._trainer, self._method.teacher.network
        if not self.p_foreground or trainer.local_rank != 0:
            return
        taught = [name in self.readiness.taught for name in self.readiness.names]
        training = average.training
        try:
            network = self._split_network.twin(average.eval())
            self.foreground.sweep(self._unlabeled, network, taught, trainer._seed + trainer.current_epoch)
        except (RuntimeError, OSError, MemoryError) as e:  # the other processes wait for this one
            trainer.print_to_log_file(f"warning: the unlabeled scans could not be looked at: {e}")
        finally:
            average.train(training)

    def tell_method(self) -> None:
        """What was decided, and whether batches come in halves from now on."""
        trainer, readiness, method = self._trainer, self.readiness, self._method
        teaches = readiness.active and readiness.taught  # background alone would teach that there is nothing else
        method.started = (readiness.started or 0) / trainer.num_epochs if teaches else None
        taught = [name in readiness.taught for name in readiness.names]
        if not trainer.label_manager.has_regions:
            taught = [True, *taught]  # the background
        method.taught = None if all(taught) else torch.tensor(taught, device=trainer.device)
        halving = any(method.weights(trainer.current_epoch / trainer.num_epochs).values())
        for loader in self._halves:
            loader.begin_epoch(halving=halving)

    def choose_network(self, validation: Augmenter) -> None:
        """At the end of self-training: the network gets its average's weights if they validate better.

        Fold ``all`` has no held-out cases to ask: there the network stays as it is.
        """
        trainer = self._trainer
        if not self.readiness.active or trainer.fold == "all":
            return
        average = self._method.teacher.network
        if all(map(torch.equal, self._network.parameters(), average.parameters())):  # chosen before, then continued
            return
        counts = validate(trainer, (self._network, average), labeled_loader(validation))
        of_network, of_average = mean_dice(counts.sum(1))
        error = standard_error(counts)
        better = of_average - of_network > STANDARD_ERRORS * error
        if better:
            self._network.load_state_dict(average.state_dict())
        trainer.print_to_log_file(
            f"The final model is the {'moving average of the network' if better else 'network, not its average'}: on "
            f"{counts.shape[1]} validation batches the average's Dice is {of_average:.4f}, the network's "
            f"{of_network:.4f} (difference {of_average - of_network:+.4f}, standard error {error:.4f})."
        )

    def _curves(self) -> dict[str, np.ndarray]:
        """Of all epochs so far, for :meth:`Readiness.update`."""
        count = len(self.readiness.names)
        logged = logged_curves(self._trainer.logger)
        curves = {"dice": self._trainer.logger.get_value("dice_per_class_or_region", step=None)}
        for name in ("stability", "share"):  # of the background, too, where there is one
            # one nan where an epoch has none
            curves[name] = [np.broadcast_to(np.atleast_1d(values)[-count:], count) for values in logged.get(name, [])]
        return {name: np.array(values, float).reshape(len(values), count) for name, values in curves.items()}

    def _turn_back(self) -> None:
        """To the network, the optimizer and the method as they were; the schedule goes on."""
        trainer = self._trainer
        if not self.snapshot.exists():
            trainer.print_to_log_file(f"warning: {self.snapshot} is not there; the network stays as it is.")
            return
        content = read_checkpoint(self.snapshot)
        self._network.load_state_dict(content["network_weights"])
        trainer.optimizer.load_state_dict(content["optimizer_state"])
        trainer.lr_scheduler.step(trainer.current_epoch)  # the optimizer's state has the rate of then
        if trainer.grad_scaler is not None and content["grad_scaler_state"] is not None:
            trainer.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self._method.load_state_dict(content[OURS]["state"])


def _foreground_names(trainer: nnUNetTrainerWithUnlabeled) -> list[str]:
    """As the user calls them in dataset.json, in nnU-Net's order."""
    names = {str(np.atleast_1d(value).tolist()): name for name, value in trainer.dataset_json["labels"].items()}
    labels = trainer.label_manager
    foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    return [names[str(np.atleast_1d(label).tolist())] for label in foreground]
