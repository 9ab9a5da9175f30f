"""How good are the network's labels of unlabeled scans? Known where labels were only hidden (``labelsUn``)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunetv2_crossmatch.nnunet.images import read_images
from nnunetv2_crossmatch.preprocessing.dataset import Planned
from nnunetv2_crossmatch.preprocessing.image_folder import HIDDEN_LABELS
from nnunetv2_crossmatch.preprocessing.listing import list_unlabeled

SCANS = 4  # enough for a curve; preprocessed again with their labels, and held in memory


class HiddenLabels:
    """A patch of each of a few unlabeled scans, around the middle of its label. Nothing is trained on them."""

    def __init__(self, patches: list[tuple[Tensor, Tensor]], labels: LabelManager):
        self._patches = patches
        self._labels = labels

    @classmethod
    def read(cls, planned: Planned, files: dict[str, list[Path]], device: torch.device) -> "HiddenLabels":
        """Take the first ``SCANS`` of ``files`` (case: its channels) that have a label; none is no error."""
        plans, configuration, dataset_json = planned.plans, planned.configuration, planned.dataset.json
        labels = {
            case: planned.dataset.require_raw() / HIDDEN_LABELS / (case + dataset_json["file_ending"]) for case in files
        }
        chosen = [case for case, label in labels.items() if label.exists()][:SCANS]
        preprocessor = configuration.preprocessor_class(verbose=False)
        patches, manager = [], plans.get_label_manager(dataset_json)
        for case in chosen:
            reader = plans.image_reader_writer_class()
            data, properties = read_images(files[case], reader)
            seg, _ = reader.read_seg(str(labels[case]))
            image, label, _ = preprocessor.run_case_npy(data, seg, properties, plans, configuration, dataset_json)
            image, label = np.asarray(image), np.asarray(label)
            if manager.ignore_label is not None:
                label = np.where(label == manager.ignore_label, -1, label)
            image, label = _patch(image, label, configuration.patch_size)
            patches.append((torch.from_numpy(image).to(device), torch.from_numpy(label).to(device)))
        return cls(patches, manager)

    def __len__(self) -> int:
        return len(self._patches)

    @torch.no_grad()
    def dice(self, network: nn.Module) -> float:
        """Mean over the foreground classes (or regions) of the Dice of all patches together; NaN if there is none."""
        classes = self._labels.foreground_regions if self._labels.has_regions else self._labels.foreground_labels
        overlap, size = torch.zeros(2, len(classes))
        training = network.training
        network.eval()
        try:
            for image, label in self._patches:
                outputs = network(image[None])
                logits = (outputs[0] if isinstance(outputs, list | tuple) else outputs)[0]
                counted = label >= 0  # not padded, cropped away or ignored
                for i, values in enumerate(classes):
                    predicted = logits[i] > 0 if self._labels.has_regions else logits.argmax(0) == values
                    truth = torch.isin(label, torch.tensor(np.atleast_1d(values).tolist(), device=label.device))
                    overlap[i] += 2 * (predicted & truth & counted).sum().cpu()
                    size[i] += ((predicted & counted).sum() + (truth & counted).sum()).cpu()
        finally:
            network.train(training)
        return float((overlap / size).nanmean())


class HiddenLabelsCurve:
    """Their Dice after each epoch, for a curve, no more: what is wrong with them does not end a training.

    Args:
        planned: what is trained.
        cases: the unlabeled ones, of which the raw dataset folder may have labels.
        say: takes what went wrong.
    """

    def __init__(
        self, planned: Planned, cases: Sequence[str], device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._labels: HiddenLabels | None = None
        raw = planned.dataset.raw
        if raw is None or not (raw / HIDDEN_LABELS).is_dir():
            return
        try:
            listed = list_unlabeled(raw, planned.dataset.json) or {}
            self._labels = HiddenLabels.read(planned, {case: listed[case] for case in cases}, device)
        except Exception as e:  # readers have their own
            say(f"warning: no curve of the pseudo-labels' Dice, {raw / HIDDEN_LABELS}: {e}")

    def measure(self, network: nn.Module) -> dict[str, float]:
        """``pseudo_label_dice``, see :meth:`HiddenLabels.dice`; nothing where there are no labels."""
        if not self._labels:
            return {}
        try:
            return {"pseudo_label_dice": self._labels.dice(network)}
        except RuntimeError as e:  # out of memory: the other processes wait for this one
            self._labels = None
            self._say(f"warning: the curve of the pseudo-labels' Dice ends here: {e}")
            return {"pseudo_label_dice": float("nan")}


def _patch(image: np.ndarray, label: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of (channels, z, y, x) and (1, z, y, x), with a 2D patch of one slice; padded where the scan is smaller."""
    label = label[0]
    foreground = np.argwhere(label > 0)
    middle = np.round(foreground.mean(0)).astype(int) if len(foreground) else np.array(label.shape) // 2
    if len(size) < label.ndim:
        slice_ = int((label > 0).sum((1, 2)).argmax())
        image, label, middle = image[:, slice_], label[slice_], middle[1:]
    start = [int(np.clip(m - s // 2, 0, max(0, n - s))) for m, s, n in zip(middle, size, label.shape, strict=True)]
    window = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
    image = pad_nd_image(image[(slice(None), *window)], tuple(size))
    label = pad_nd_image(label[window], tuple(size), kwargs={"constant_values": -1})
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(label, np.int16)
