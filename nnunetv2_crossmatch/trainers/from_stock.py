"""CrossMatch from the stock nnU-Net that is trained already."""

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunetv2_crossmatch.nnunet.run_folder import RunFolder
from nnunetv2_crossmatch.trainers.crossmatch import nnUNetTrainerCrossMatch


class nnUNetTrainerCrossMatchFromStock(nnUNetTrainerCrossMatch):
    """Self-training from the finished ``nnUNetTrainer`` of the same dataset, plans, configuration and fold.

    A third of the default's epochs, and half of its learning rate, which falls anew.
    """

    epochs = 250
    begins_trained = True

    def initialize(self) -> None:
        self.initial_lr /= 2
        super().initialize()

    def on_train_start(self) -> None:
        """Raises RuntimeError: no such model, one of another network, or of another split."""
        begins = self.current_epoch == 0  # not continued
        if begins:
            if not self.was_initialized:
                self.initialize()
            dice = self._take_stock_network()
        super().on_train_start()
        if begins:
            if self.local_rank == 0:
                share = self.phases.measure().get("share", [float("nan")] * len(dice))[-len(dice) :]
                names = self.phases.readiness.names
                for message in self.phases.readiness.begin(
                    dict(zip(names, dice, strict=True)), dict(zip(names, share, strict=True))
                ):
                    self.print_to_log_file(message)
            self.phases.save_snapshot()

    def _take_stock_network(self) -> np.ndarray:
        """Its weights; returns the validation Dice that nnU-Net logged last, of each foreground class."""
        stock = RunFolder.of(
            self.plans_manager.dataset_name,
            "nnUNetTrainer",
            self.plans_manager.plans_name,
            self.configuration_name,
            self.fold,
        )
        if not stock.is_trained:
            raise RuntimeError(
                f"{type(self).__name__} begins with a finished model of nnUNetTrainer, and {stock.checkpoint()} is not "
                f"there. Train it first: {stock.train_command()}"
            )
        summary = stock.validation / "summary.json"
        if summary.exists():
            theirs = {
                case["prediction_file"].rpartition("/")[2].removesuffix(self.dataset_json["file_ending"])
                for case in load_json(str(summary))["metric_per_case"]
            }
            ours = set(self.do_split()[1])
            if theirs != ours:
                different = ", ".join(sorted(theirs ^ ours)[:3])
                raise RuntimeError(
                    f"{stock.path} was trained with another split: {len(theirs ^ ours)} cases are validation cases of "
                    f"one only ({different}). Train it again: {stock.train_command()}"
                )
        else:
            self.print_to_log_file(
                f"warning: {stock} is not validated, so its split could not be compared with this one"
            )
        content = torch.load(
            stock.checkpoint(), map_location=self.device, weights_only=False
        )  # stock has NumPy's numbers
        try:
            self._plain_network.load_state_dict(content["network_weights"])
        except RuntimeError as e:
            raise RuntimeError(f"{stock.checkpoint()} is of another network than these plans make: {e}") from None
        self.method.teacher.network.load_state_dict(content["network_weights"])
        self.print_to_log_file(f"begins with {stock.checkpoint()}")
        return np.nanmean(np.array(content["logging"]["dice_per_class_or_region"][-3:], float), 0)
