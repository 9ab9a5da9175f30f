"""Two samples become one: CutMix (arXiv 1905.04899) in the plane or in the volume, and the partner of each."""

import torch
from torch import Tensor

VOLUME = (0.02, 0.4)  # share of the patch
ASPECT = (0.3, 1 / 0.3)  # between the last two axes, relative to the patch


def draw_boxes(
    batch: int,
    spatial: tuple[int, ...],
    p: float,
    device: torch.device,
    volumes: tuple[float, float] = VOLUME,
    aspects: tuple[float, float] = ASPECT,
) -> Tensor:
    """One box per sample as a bool mask (batch, 1, *spatial); empty with probability 1 - p.

    The volume is U(volumes) of the patch, the aspect of the last two axes U(aspects) as far as the box
    fits; a third axis gets the cube root's share.
    """
    dimensions = len(spatial)
    volume = torch.empty(batch, device=device).uniform_(*volumes)
    edge = volume ** (1 / dimensions)
    area = edge.square()  # of the last two axes
    aspect = torch.empty(batch, device=device).uniform_(*aspects).clamp(min=area, max=1 / area)
    edges = [edge] * (dimensions - 2) + [(area * aspect).sqrt(), (area / aspect).sqrt()]

    mask = (torch.rand(batch, device=device) < p).reshape(batch, *[1] * (dimensions + 1))
    for axis, (size, relative) in enumerate(zip(spatial, edges, strict=True)):
        length = (relative * size).round()
        start = (torch.rand(batch, device=device) * (size - length + 1)).floor()
        position = torch.arange(size, device=device)
        inside = (position >= start[:, None]) & (position < (start + length)[:, None])  # (batch, size)
        shape = [batch, 1, *[1] * dimensions]
        shape[2 + axis] = size
        mask = mask & inside.reshape(shape)
    return mask


class Partner:
    """The sample that each one is mixed with: another one of the batch, or with one sample the previous step's.

    Call :meth:`draw` once a step, then :meth:`of` for everything that has to follow the same partner.
    """

    def __init__(self) -> None:
        self._shift = 0
        self._now: dict[str, Tensor] = {}
        self._previous: dict[str, Tensor] = {}

    def forget(self) -> None:
        """The next step is as the first: no previous one, so that nothing of it needs to be in a checkpoint."""
        self._now, self._previous = {}, {}

    def draw(self, batch: int) -> None:
        """A random cyclic shift, so that no sample is its own partner."""
        self._shift = int(torch.randint(1, batch, ())) if batch > 1 else 0
        self._previous, self._now = self._now, {}

    def of(self, name: str, values: Tensor) -> Tensor:
        """The partners' rows of ``values`` (batch, ...). ``name`` finds the previous step's at batch size 1."""
        if len(values) > 1:
            return values.roll(self._shift, 0)
        self._now[name] = values
        return self._previous.get(name, values)


def paste(box: Tensor, own: Tensor, partner: Tensor) -> Tensor:
    """``partner`` inside the box, ``own`` outside; images, labels and masks alike."""
    return torch.where(box, partner, own)
