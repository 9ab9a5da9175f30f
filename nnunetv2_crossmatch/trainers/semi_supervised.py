"""The one place where nnU-Net and a method meet."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, autocast, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_crossmatch.methods import SUPERVISED, Constants, LabeledBatch, Method, UnlabeledBatch
from nnunetv2_crossmatch.networks.distributed import average_gradients
from nnunetv2_crossmatch.networks.split_unet import Outputs, SplitUNet
from nnunetv2_crossmatch.nnunet.loaders import (
    Augmenter,
    Halves,
    UnlabeledDataset,
    augment,
    draw_patches,
    labeled_loader,
    unlabeled_loader,
    without_intensity,
)
from nnunetv2_crossmatch.nnunet.logger import log_curves, logged_curves
from nnunetv2_crossmatch.nnunet.training_log import CURVES
from nnunetv2_crossmatch.preprocessing.image_folder import HIDDEN_LABELS
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled
from nnunetv2_crossmatch.trainers.checkpoints import OURS, CheckpointError, read_checkpoint
from nnunetv2_crossmatch.trainers.curves import EpochRatios, gradient_ratios, plot_curves
from nnunetv2_crossmatch.trainers.hidden_labels import HiddenLabels
from nnunetv2_crossmatch.trainers.probe import Probe, patches_wanted
from nnunetv2_crossmatch.trainers.readiness import Readiness
from nnunetv2_crossmatch.trainers.records import write_method
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled

GRADIENT_CLIP = 12  # nnU-Net's, a literal in its train_step


class nnUNetTrainerSemiSupervised(nnUNetTrainerWithUnlabeled):
    """nnU-Net plus unlabeled batches; a subclass says what learns from them: ``method_class`` and ``constants``.

    Each step takes nnU-Net's labeled batch with nnU-Net's loss, and as large an unlabeled batch, or half of each. A
    method may wait until the network knows the classes. The network stays nnU-Net's own object, so the trained model is
    a stock nnU-Net model.
    """

    method_class: type[Method]
    constants: Constants
    epochs = 150
    ready_at: int | None = None  # see Readiness

    method: Method  # -> initialize
    dataloader_train: Augmenter | Halves  # nnU-Net's
    dataloader_unlabeled: Augmenter | Halves  # -> get_dataloaders

    def initialize(self) -> None:
        regions = self.label_manager.has_regions
        if regions and not self.method_class.supports_regions:
            raise RuntimeError(
                f"{type(self).__name__} needs classes that exclude each other, and regions overlap. "
                "Train nnUNetTrainerCrossMatch, or plan with labels in place of regions."
            )
        super().initialize()
        self._ratios = EpochRatios()
        self._step_in_epoch = 0
        self._stage = ""
        self._hidden_labels: HiddenLabels | None = None
        self._halves: list[Halves] = []
        network = self._plain_network
        self._split_network = SplitUNet(network, self._autocast)
        configuration = self.configuration_manager
        self.method = self.method_class(
            self.constants,
            network,
            patch=tuple(configuration.patch_size),
            regions=regions,
            spacing=tuple(configuration.spacing),
            batch_dice=configuration.batch_dice,
        ).to(self.device)
        self.readiness = Readiness(self._foreground_names, self.ready_at)
        self._own_parameters = [p for p in self.method.parameters() if p.requires_grad]
        if self._own_parameters:
            like_networks = {k: v for k, v in self.optimizer.param_groups[0].items() if k != "params"}
            self.optimizer.add_param_group({**like_networks, "params": self._own_parameters})
        if self.is_ddp:  # each process has drawn its own initial heads
            for value in self.method.state_dict().values():
                dist.broadcast(value, 0)
        if self._do_i_compile():
            self._split_network.compile()
            for module in self.method.modules():
                if SplitUNet.can_split(module):
                    SplitUNet(module).compile()

    @property
    def _plain_network(self) -> nn.Module:
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        if isinstance(network, OptimizedModule):
            network = network._orig_mod
        return network

    def _autocast(self) -> AbstractContextManager:
        return autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def on_train_start(self) -> None:
        if not self.was_initialized:
            self.initialize()
        self._unlabeled_cases = self._prepare_unlabeled()  # under DDP the first process works, the others wait
        super().on_train_start()
        if self.local_rank == 0 and self.current_epoch == 0:
            self._snapshot.unlink(missing_ok=True)  # of a training that was given up
        self._take_halves()
        if self.local_rank == 0:
            self._hidden_labels = self._read_hidden_labels()
            constants = asdict(self.method.constants)
            method = write_method(Path(self.output_folder), type(self.method).__name__, constants)
            self.logger.update_config({"method": method})

    def _read_hidden_labels(self) -> HiddenLabels | None:
        """For a curve, no more: what is wrong with them does not end a training."""
        planned = self.planned
        raw = planned.dataset.raw
        if raw is None or not (raw / HIDDEN_LABELS).is_dir():
            return None
        try:
            listed = list_unlabeled(raw, self.dataset_json) or {}
            files = {case: listed[case] for case in self._unlabeled_cases}
            return HiddenLabels.read(planned, files, self.device)
        except Exception as e:  # readers have their own
            self.print_to_log_file(f"warning: no curve of the pseudo-labels' Dice, {raw / HIDDEN_LABELS}: {e}")
            return None

    def _dice_of_hidden_labels(self, hidden_labels: HiddenLabels) -> float:
        try:
            with self._autocast():
                return hidden_labels.dice(self._plain_network)
        except RuntimeError as e:  # out of memory: the other processes wait for this one
            self._hidden_labels = None
            self.print_to_log_file(f"warning: the curve of the pseudo-labels' Dice ends here: {e}")
            return float("nan")

    def get_dataloaders(self) -> tuple[Augmenter, Augmenter]:
        workers = get_allowed_n_proc_DA()
        # the unlabeled loader (geometry alone, cheap) takes a third of nnU-Net's worker budget, one at least
        unlabeled_workers = max(1, workers // 3) if workers else 0
        with _environment(nnUNet_n_proc_DA=str(max(1, workers - unlabeled_workers) if workers else 0)):
            train, val = super().get_dataloaders()
        dataset = UnlabeledDataset(str(self.planned.unlabeled_folder), self._unlabeled_cases)
        loader = unlabeled_loader(labeled_loader(train), dataset, self.label_manager)
        if self._self_trains and self.local_rank == 0:
            self._probe = self._draw_probe(loader, labeled_loader(train))
        self.dataloader_unlabeled = augment(loader, unlabeled_workers, pin_memory=self.device.type == "cuda")
        return train, val

    def _draw_probe(self, unlabeled: nnUNetDataLoader, labeled: nnUNetDataLoader) -> Probe:
        count = patches_wanted(self.configuration_manager.patch_size, self.batch_size)
        images = draw_patches(unlabeled, count, self._seed)
        labels = draw_patches(without_intensity(labeled, self.label_manager), 4 * count, self._seed)
        return Probe(
            [(batch["data"], batch["target"] >= 0) for batch in images],
            [batch["target"] for batch in labels],
            self.label_manager,
        )

    def _take_halves(self) -> None:
        if self.method.halves:
            self.dataloader_train = Halves(self.dataloader_train, larger_first=True)
            self.dataloader_unlabeled = Halves(self.dataloader_unlabeled, larger_first=False)
            self._halves = [self.dataloader_train, self.dataloader_unlabeled]
            if self.batch_size == 1:
                self.print_to_log_file(
                    "warning: one sample a step cannot be halved, so a step of self-training costs 2.33 of nnU-Net's "
                    "and not 1.17"
                )

    def _measure_probe(self) -> dict[str, list[float]]:
        average = self._split_network.twin(self.method.teacher.network)
        try:
            return self._probe.measure(self._split_network, average, self.device)
        except RuntimeError as e:  # out of memory: the other processes wait for this one
            self.print_to_log_file(f"warning: the unlabeled patches could not be looked at: {e}")
            return {}

    def on_train_end(self) -> None:
        for name in ("dataloader_train", "dataloader_unlabeled"):  # nnU-Net asks for their type
            loader = getattr(self, name)
            setattr(self, name, loader.augmenter if isinstance(loader, Halves) else loader)
        super().on_train_end()
        if self.local_rank == 0:
            self._snapshot.unlink(missing_ok=True)
        if self.local_rank == 0 and (ratios := gradient_ratios(self.logger)):
            self.print_to_log_file(
                "gradient norm of the unlabeled losses over that of nnU-Net's own loss: "
                f"{sum(ratios) / len(ratios):.2g} on average, {ratios[-1]:.2g} in the last epoch. "
                "Near 0 the unlabeled scans hardly take part."
            )
        if isinstance(self.dataloader_unlabeled, NonDetMultiThreadedAugmenter):
            self.dataloader_unlabeled._finish()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._step_in_epoch = 0
        self.method.partner.forget()
        if self._self_trains:
            self._ask_readiness()
            self._tell_method()

    @property
    def _self_trains(self) -> bool:
        """Whether the method waits for the network, and has a loss to wait with."""
        return self.method.waits and any(self.method.weights_after_warmup(1.0).values())

    @property
    def _snapshot(self) -> Path:
        """The training as it was when self-training began."""
        return Path(self.output_folder) / "before_self_training.pth"  # no checkpoint_*: --c never goes on from it

    def _ask_readiness(self) -> None:
        """Let the unlabeled scans teach, class by class, or no more; the same on every process."""
        readiness = self.readiness
        before = readiness.active
        decided: list[Any] = [None]
        if self.local_rank == 0:
            for message in readiness.update(self.current_epoch, self.num_epochs, self._readiness_curves()):
                self.print_to_log_file(message)
            decided = [readiness.state()]
        if self.is_ddp:
            dist.broadcast_object_list(decided)
            readiness.load(decided[0])
        if readiness.active and not before:
            self.save_checkpoint(str(self._snapshot))
        if before and not readiness.active:
            self._turn_back()

    def _tell_method(self) -> None:
        """What was decided, and whether batches come in halves from now on."""
        readiness = self.readiness
        teaches = readiness.active and readiness.taught  # background alone would teach that there is nothing else
        self.method.started = (readiness.started or 0) / self.num_epochs if teaches else None
        taught = [name in readiness.taught for name in readiness.names]
        if not self.label_manager.has_regions:
            taught = [True, *taught]  # the background
        self.method.taught = None if all(taught) else torch.tensor(taught, device=self.device)
        halving = any(self.method.weights(self.current_epoch / self.num_epochs).values())
        for loader in self._halves:
            loader.begin_epoch(halving=halving)

    def _readiness_curves(self) -> dict[str, np.ndarray]:
        """Of all epochs so far, for :meth:`Readiness.update`."""
        count = len(self.readiness.names)
        logged = logged_curves(self.logger)
        curves = {"dice": self.logger.get_value("dice_per_class_or_region", step=None)}
        for name in ("stability", "share"):  # of the background, too, where there is one
            # one nan where an epoch has none
            curves[name] = [np.broadcast_to(np.atleast_1d(values)[-count:], count) for values in logged.get(name, [])]
        return {name: np.array(values, float).reshape(len(values), count) for name, values in curves.items()}

    def _turn_back(self) -> None:
        """To the network, the optimizer and the method as they were; the schedule goes on."""
        if not self._snapshot.exists():
            self.print_to_log_file(f"warning: {self._snapshot} is not there; the network stays as it is.")
            return
        content = read_checkpoint(self._snapshot)
        self._plain_network.load_state_dict(content["network_weights"])
        self.optimizer.load_state_dict(content["optimizer_state"])
        self.lr_scheduler.step(self.current_epoch)  # the optimizer's state has the rate of then
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])
        self.method.load_state_dict(content[OURS]["state"])

    def train_step(self, batch: dict) -> dict:
        self.optimizer.zero_grad(set_to_none=True)
        steps = self.num_iterations_per_epoch
        progress = (self.current_epoch * steps + self._step_in_epoch) / (self.num_epochs * steps)
        self._step_in_epoch += 1
        self._announce_stage(progress)
        self.method.curves = {}  # here, so that no method can forget to
        self.method.begin_step(progress)
        weights = self.method.weights(progress)
        supervised = bool(weights.pop(SUPERVISED, 1.0))
        labeled = self._labeled_batch(batch)
        parameters = list(self.network.parameters())
        not_averaged = self._own_parameters  # DDP's forward, where there is one, averages the network's gradients
        ratios: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        values: dict[str, Tensor] = {}

        if any(weights.values()):
            with self.network.no_sync() if self.is_ddp else nullcontext():
                values = self._method_backward({**weights, SUPERVISED: 1.0}, labeled)
            ratios |= self.method.curves
            graphs = "joint" if {SUPERVISED, "labeled", "joint"} & values.keys() else "unlabeled"
            ratios[f"gradient_norm_{graphs}"] = (self._unscaled(_norm(p.grad for p in parameters)), 1)

        if supervised and SUPERVISED not in values:
            with self._autocast():
                outputs = self.network(labeled.image)
            loss = labeled.loss(outputs)
            with _record_gradients(parameters) as labeled_norms:
                self._scaled(loss).backward()
            values[SUPERVISED] = loss.detach()
            ratios["gradient_norm_labeled"] = (self._unscaled(torch.stack(labeled_norms).norm()), 1)
        else:
            not_averaged = parameters + self._own_parameters
        average_gradients(not_averaged)
        drawn_or_not = [*values, *(name for name, weight in weights.items() if weight and name not in values)]
        ratios |= {f"loss_{name}": (values.get(name, 0.0), 1) for name in drawn_or_not}

        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        own_norm = nn.utils.clip_grad_norm_(
            self._own_parameters, GRADIENT_CLIP
        )  # apart: it takes nothing from the network
        finite = norm.isfinite() & own_norm.isfinite()
        # a step that is skipped is not clipped: nan is not counted
        ratios["clipped_share"] = (torch.where(finite, (norm > GRADIENT_CLIP).float(), torch.nan), 1)
        ratios["skipped_share"] = ((~finite).float(), 1)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)  # unless a gradient is not finite
            self.grad_scaler.update()
        elif finite:
            self.optimizer.step()
        self._ratios.add(ratios, self.device)
        # nnU-Net wants a number even where a stage has no supervised loss
        shown = (
            values[SUPERVISED]
            if SUPERVISED in values
            else torch.stack([weights[name] * value for name, value in values.items()]).sum()
        )
        shown, finite = torch.stack((shown, finite)).cpu().numpy()  # the one time that the host waits
        if finite:
            self.method.after_step(self._plain_network)
        else:
            self.method.partner.forget()  # the next batch of one would be pasted into it
        self._count_skipped(bool(finite), shown)
        return {"loss": shown}

    def _announce_stage(self, progress: float) -> None:
        stage = next((name for start, name in reversed(self.method.stages) if progress >= start), "")
        if stage != self._stage:
            self._stage = stage
            self.print_to_log_file(f"{type(self.method).__name__}, {stage}")

    def _labeled_batch(self, batch: dict) -> LabeledBatch:
        """nnU-Net's batch on the device."""
        target = batch["target"]
        target = (
            [t.to(self.device, non_blocking=True) for t in target]
            if isinstance(target, list)
            else target.to(self.device, non_blocking=True)
        )
        label = target[0] if isinstance(target, list) else target
        ignored = torch.zeros_like(label[:, :1], dtype=torch.bool)
        if self.label_manager.has_ignore_label and self.label_manager.has_regions:
            label, ignored = label[:, :-1], label[:, -1:] > 0
        elif self.label_manager.has_ignore_label:
            ignored = label == self.label_manager.ignore_label

        def loss(outputs: Outputs) -> Tensor:
            with self._autocast():
                return self.loss(outputs, target)

        return LabeledBatch(batch["data"].to(self.device, non_blocking=True), label, ~ignored, loss)

    def _method_backward(self, weights: dict[str, float], labeled: LabeledBatch) -> dict[str, Tensor]:
        """Backward of the method's losses, one graph at a time; the losses' values, not weighted."""
        batch = next(self.dataloader_unlabeled)
        unlabeled = UnlabeledBatch(
            image=batch["data"].to(self.device, non_blocking=True),
            valid=batch["target"].to(self.device, non_blocking=True) >= 0,
        )
        values: dict[str, Tensor] = {}
        for losses in self.method.losses(self._split_network, unlabeled, labeled):
            self._scaled(torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()).backward()
            for name in list(losses):  # none stays: its graph would keep the stream's features alive
                value = losses.pop(name).detach()
                values[name] = values[name] + value if name in values else value
        return values

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.grad_scaler is None else self.grad_scaler.scale(loss)

    def _unscaled(self, norm: Tensor) -> Tensor:
        return norm if self.grad_scaler is None else norm / self.grad_scaler._get_scale_async()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        curves = self._ratios.pop()
        if self.local_rank == 0 and self._hidden_labels:
            curves["pseudo_label_dice"] = self._dice_of_hidden_labels(self._hidden_labels)
        if self.local_rank == 0 and self._self_trains and self.readiness.ended is None:
            curves |= self._measure_probe()
        log_curves(self.logger, curves, self.current_epoch, self._classes)
        rounded = {name: np.round(value, 4).tolist() for name, value in curves.items()}
        self.print_to_log_file(CURVES + json.dumps(rounded))
        shares = curves.get("kept_share")
        if isinstance(shares, list):
            foreground = dict(zip(self._classes, shares, strict=True))
            foreground.pop("0", None)  # the background
            if self.method.taught is not None:  # what is not taught is left out on purpose
                named = zip(self._classes, self.method.taught.tolist(), strict=True)
                foreground = {name: foreground[name] for name, taught in named if taught and name in foreground}
            missing = [name for name, share in foreground.items() if not share > 0]  # nan: predicted nowhere
            if missing:
                collapsed = ", so the unlabeled scans teach no foreground" if len(missing) == len(foreground) else ""
                self.print_to_log_file(
                    f"warning: no unlabeled voxel was confidently {' or '.join(missing)} in this epoch{collapsed}. "
                    f"If that lasts, train with a {'' if self.method.waits else 'longer warmup or a '}lower threshold."
                )

    @property
    def _classes(self) -> list[str]:
        labels = self.label_manager
        return [str(label) for label in (labels.foreground_regions if labels.has_regions else labels.all_labels)]

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            stages = [(start * self.num_epochs, name.partition(":")[0]) for start, name in self.method.stages]
            if self._self_trains:
                stages = [(0.0, "nnU-Net"), *self.readiness.stages()]
            plot_curves(self.logger, Path(self.output_folder) / "progress_unlabeled.png", self._classes, stages)

    def training_state(self) -> dict[str, Any]:
        method = {"method": type(self.method).__name__, "constants": asdict(self.method.constants)}
        return {
            **super().training_state(),
            **method,
            "state": self.method.state_dict(),
            "readiness": self.readiness.state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        constants = asdict(self.method.constants)
        changed = {name: value for name, value in state["constants"].items() if constants.get(name) != value}
        if changed:
            self.print_to_log_file(f"warning: this training began with {changed} and goes on with {constants}.")
        if "readiness" in state:
            self.readiness.load(state["readiness"])
        elif self.method.waits:
            raise CheckpointError(
                f"The checkpoint in {self.output_folder} is of an earlier version's {state['method']}, which trained "
                "in another way. Finish it with that version, or move it away and train from scratch."
            )
        try:
            self.method.load_state_dict(state["state"])
        except RuntimeError as e:
            raise CheckpointError(
                f"The checkpoint in {self.output_folder} does not fit; it is of {state['method']} with "
                f"{state['constants']}, or of another network: {e}"
            ) from None

    @property
    def _foreground_names(self) -> list[str]:
        """As the user calls them in dataset.json, in nnU-Net's order."""
        names = {str(np.atleast_1d(value).tolist()): name for name, value in self.dataset_json["labels"].items()}
        labels = self.label_manager
        foreground = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        return [names[str(np.atleast_1d(label).tolist())] for label in foreground]


def _norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Norm of all gradients together; parameters without one do not count."""
    return torch.stack(torch._foreach_norm([g for g in gradients if g is not None])).norm()


@contextmanager
def _record_gradients(parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Norms of the gradients that backward passes in this context add, whatever was there before."""
    norms: list[Tensor] = []
    handles = [p.register_hook(lambda gradient: norms.append(gradient.norm())) for p in parameters]
    try:
        yield norms
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
