"""The one place where nnU-Net and a method meet."""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
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
    labeled_loader,
    unlabeled_loader,
)
from nnunetv2_crossmatch.nnunet.logger import log_curves
from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.nnunet.training_log import CURVES_FILE
from nnunetv2_crossmatch.trainers.catalog import STEP_COSTS
from nnunetv2_crossmatch.trainers.checkpoints import CheckpointError
from nnunetv2_crossmatch.trainers.curves import (
    BACKGROUND,
    EpochRatios,
    epoch_line,
    gradient_ratios,
    not_labeled,
    plot_curves,
    write_curves,
)
from nnunetv2_crossmatch.trainers.hidden_labels import HiddenLabelsCurve
from nnunetv2_crossmatch.trainers.phases import Phases
from nnunetv2_crossmatch.trainers.records import write_method
from nnunetv2_crossmatch.trainers.unlabeled_cases import nnUNetTrainerWithUnlabeled
from nnunetv2_crossmatch.utilities.durations import duration

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
    begins_trained = False  # with a network that knows the classes

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
        self._hidden_labels: HiddenLabelsCurve | None = None
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
        self.phases = Phases(self, self.method, network, self._split_network, self.ready_at)
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
        self.phases.begin()  # after the checks: a start that is refused leaves everything as it is
        super().on_train_start()
        self._take_halves()
        if self.local_rank == 0:
            if self.current_epoch == 0:  # of another training
                (Path(self.output_folder) / CURVES_FILE).unlink(missing_ok=True)
            self._hidden_labels = HiddenLabelsCurve(
                self.planned, self._unlabeled_cases, self.device, self.print_to_log_file
            )
            constants = asdict(self.method.constants)
            method = write_method(Path(self.output_folder), type(self.method).__name__, constants)
            self.logger.update_config({"method": method})
            self.print_to_log_file(self._outlook())
            self.print_to_log_file(self._hours())

    @property
    def _step_cost(self) -> float | None:
        costs = (STEP_COSTS[cls.__name__] for cls in type(self).__mro__ if cls.__name__ in STEP_COSTS)
        return next(costs, None)

    def _hours(self) -> str:
        """As far as plain nnU-Net's trainings of the same plans tell, else how to know them."""
        planned, cost = self.planned, self._step_cost
        of = planned.plans.plans_name, planned.configuration_name
        stock = RunFolder.of(planned.dataset.name, "nnUNetTrainer", *of, 0).model_folder
        seconds = [RunFolder(folder).progress().seconds for folder in stock.glob("fold_*")]
        if cost is None or not (known := [of_epoch for of_epoch in seconds if of_epoch]):
            return f"How many hours: {planned.command('estimate')} -tr {type(self).__name__} measures it."
        epoch = median(known) * self.num_iterations_per_epoch / nnUNetTrainerWithUnlabeled.iterations_per_epoch
        waits = self.phases.exist and not self.begins_trained
        times = dict.fromkeys(duration(self.num_epochs * epoch * of) for of in ((1, cost) if waits else (cost,)))
        return f"About {' to '.join(times)}, if an epoch of plain nnU-Net takes {epoch:.0f} s as in {stock}."

    def _outlook(self) -> str:
        """How long it is, what its steps cost, and when they begin to."""
        step_cost = self._step_cost
        cost = f"costs {step_cost:g} of nnU-Net's in FLOPs" if step_cost else "has a cost that was not measured"
        length = f"{self.num_epochs} epochs of {self.num_iterations_per_epoch} steps"
        if not self.phases.exist:
            return f"{length}; a step {cost}."
        if self.begins_trained:
            return f"{length} of self-training; a step {cost}."
        thresholds, at = self.phases.readiness.thresholds, self.phases.readiness.at
        first = 2 * max(1, min(thresholds.window, self.num_epochs // 5)) if at is None else at
        last = max(first, ceil(thresholds.latest * self.num_epochs))
        return (
            f"{length}, stock nnU-Net's until the network knows the classes. Self-training may begin with epoch "
            f"{first}, with epoch {last} at the latest; a step of it {cost}."
        )

    def get_dataloaders(self) -> tuple[Augmenter, Augmenter]:
        workers = get_allowed_n_proc_DA()
        # the unlabeled loader (geometry alone, cheap) takes a third of nnU-Net's worker budget, one at least
        unlabeled_workers = max(1, workers // 3) if workers else 0
        with _environment(nnUNet_n_proc_DA=str(max(1, workers - unlabeled_workers) if workers else 0)):
            train, val = super().get_dataloaders()
        dataset = UnlabeledDataset(str(self.planned.unlabeled_folder), self._unlabeled_cases)
        if self.phases.p_foreground:
            dataset.locations = self.phases.foreground.folder
        labeled, labels = labeled_loader(train), self.label_manager
        self.phases.draw_probe(unlabeled_loader(labeled, dataset, labels), labeled)
        loader = unlabeled_loader(labeled, dataset, labels, self.phases.p_foreground)
        self.dataloader_unlabeled = augment(loader, unlabeled_workers, pin_memory=self.device.type == "cuda")
        return train, val

    def _take_halves(self) -> None:
        loaders = self.phases.halve(self.dataloader_train, self.dataloader_unlabeled)
        self.dataloader_train, self.dataloader_unlabeled = loaders

    def on_train_end(self) -> None:
        self.phases.choose_network(self.dataloader_val)
        for name in ("dataloader_train", "dataloader_unlabeled"):  # nnU-Net asks for their type
            loader = getattr(self, name)
            setattr(self, name, loader.augmenter if isinstance(loader, Halves) else loader)
        super().on_train_end()
        if self.local_rank == 0 and (ratios := gradient_ratios(self.logger)):
            self.print_to_log_file(
                "gradient norm of the unlabeled losses over that of nnU-Net's own loss: "
                f"{sum(ratios) / len(ratios):.2g} on average, {ratios[-1]:.2g} in the last epoch. "
                "Near 0 the unlabeled scans hardly take part."
            )
        if isinstance(self.dataloader_unlabeled, NonDetMultiThreadedAugmenter):
            self.dataloader_unlabeled._finish()
        self.phases.end()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._step_in_epoch = 0
        self.method.partner.forget()
        self.phases.begin_epoch()

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
        groups = filter(None, (parameters, self._own_parameters))  # the norm of none would be on the CPU
        norms = [nn.utils.clip_grad_norm_(group, GRADIENT_CLIP) for group in groups]  # neither takes from the other
        norm, finite = norms[0], torch.stack(norms).isfinite().all()
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
        if self._hidden_labels is not None:
            with self._autocast():
                curves |= self._hidden_labels.measure(self._plain_network)
        curves |= self.phases.measure()
        log_curves(self.logger, curves, self.current_epoch, self._classes)
        if line := epoch_line(curves, self._classes):
            self.print_to_log_file(line)
        if missing := not_labeled(curves.get("kept_share"), self._classes, self.method.taught):
            waits = self.method.waits
            self.print_to_log_file(
                f"warning: no unlabeled voxel was confidently {missing}. If that lasts, train with a "
                f"{'' if waits else 'longer warmup or a '}lower threshold (methods/README.md: a constant of your own)."
            )

    @property
    def _classes(self) -> list[str]:
        foreground = [*self.phases.readiness.names]
        return foreground if self.label_manager.has_regions else [BACKGROUND, *foreground]

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.local_rank == 0:
            folder, t = Path(self.output_folder), self.phases.readiness.thresholds
            limits = {"dice": [t.dice], "stability": [t.stability], "share": [1 / t.share, t.share]}
            write_curves(self.logger, folder / CURVES_FILE, self._classes)
            plot_curves(
                self.logger,
                folder / "progress_unlabeled.png",
                self._classes,
                self.phases.stages(),
                limits if self.phases.exist and self.phases.readiness.at is None else {},
                (self.phases.slices.numpy(), self.phases.labels),
            )

    def training_state(self) -> dict[str, Any]:
        method = {"method": type(self.method).__name__, "constants": asdict(self.method.constants)}
        return {
            **super().training_state(),
            **method,
            "state": self.method.state_dict(),
            **self.phases.state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        constants = asdict(self.method.constants)
        changed = {name: value for name, value in state["constants"].items() if constants.get(name) != value}
        if changed:
            self.print_to_log_file(f"warning: this training began with {changed} and goes on with {constants}.")
        # the teacher's: FixMatch and UniMatch had none when they did not wait
        earlier = "readiness" not in state or (self.method.has_teacher and "teacher.updates" not in state["state"])
        if not earlier:
            self.phases.load(state)
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
