"""What a network says of unlabeled voxels, made hard: the target of other streams."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunetv2_crossmatch.views.mixing import Partner, draw_boxes, paste

OTHERS = 0.01  # probability of the classes that are not taught, up to which a voxel is background for sure


def probabilities(logits: Tensor, *, regions: bool) -> Tensor:
    """Softmax over the classes (batch, classes, *spatial); with regions, which overlap, a sigmoid of each."""
    return logits.sigmoid() if regions else logits.softmax(1)


@dataclass(frozen=True)
class PseudoLabel:
    """Hard labels and the voxels to trust.

    label: class index (batch, 1, *spatial), or with regions one binary map each (batch, regions, *spatial).
    kept: bool of the same shape: the teacher's confidence reaches the threshold, and the voxel is valid.
    valid: bool (batch, 1, *spatial), see :class:`UnlabeledBatch`.
    """

    label: Tensor
    kept: Tensor
    valid: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        logits: Tensor,
        valid: Tensor,
        *,
        threshold: float = 0.0,
        regions: bool = False,
        taught: Tensor | None = None,
    ) -> "PseudoLabel":
        """Of ``logits`` (batch, classes or regions, *spatial); confidence is the probability of the label.

        ``taught``, bool (classes or regions,), says which of them count; the voxels of another class, and those that
        may be, are not kept, so that it is not taught as background. None: all.
        """
        p = probabilities(logits, regions=regions)
        if regions:
            label = p > 0.5
            confidence = torch.maximum(p, 1 - p)
        else:
            confidence, label = p.max(1, keepdim=True)
            label = label.to(torch.uint8 if logits.shape[1] <= 256 else torch.int16)  # an eighth of int64's memory
        kept = (confidence >= threshold) & valid
        if taught is not None:
            others = taught.logical_not().reshape(1, -1, *[1] * (p.ndim - 2))
            if regions:
                kept = kept & ~others
            else:  # a voxel may be background only if it is of no other class for sure
                sure = (p * others).sum(1, keepdim=True) <= OTHERS
                kept = kept & taught[label.long()] & ((label > 0) | sure)
        return cls(label, kept, valid)

    def mix(self, box: Tensor, partner: Partner, name: str = "") -> "PseudoLabel":
        """With the partners' labels inside the box; ``name`` tells several pseudo-labels of a step apart."""
        return PseudoLabel(*(paste(box, own, partner.of(f"{name}_{field}", own)) for field, own in vars(self).items()))

    def kept_share(self, classes: int) -> tuple[Tensor, Tensor]:
        """Kept and valid voxels of each predicted class (or region), both (classes,)."""
        if self.label.dtype == torch.bool:
            predicted, kept = list(self.label.split(1, 1)), list(self.kept.split(1, 1))
        else:
            predicted, kept = [self.label == c for c in range(classes)], [self.kept] * classes
        return (
            torch.stack([(p & k).sum() for p, k in zip(predicted, kept, strict=True)]),
            torch.stack([(p & self.valid).sum() for p in predicted]),
        )

    @torch.no_grad()
    def agreement(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """On how many valid voxels ``logits`` say the same, and how many there are."""
        predicted = logits > 0 if self.label.dtype == torch.bool else logits.max(1, keepdim=True).indices
        valid = self.valid.expand_as(predicted)
        return ((predicted == self.label) & valid).sum(), valid.sum()


def strong_mix(
    strong: Tensor, label: PseudoLabel, partner: Partner, p_cutmix: float, name: str = ""
) -> tuple[Tensor, PseudoLabel]:
    """CutMix of a strong view (batch, channels, *spatial), and the label that follows it.

    ``p_cutmix`` is the share of samples with a pasted box; ``name`` tells several views of a step apart.
    """
    box = draw_boxes(len(strong), tuple(strong.shape[2:]), p_cutmix, strong.device)
    return paste(box, strong, partner.of(f"{name}_image", strong)), label.mix(box, partner)
