"""Projection heads on a U-Net's bottleneck, logits and voxels; trained along, dropped at inference."""

from collections.abc import Callable
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 256


def mlp(inputs: int, outputs: int, hidden: int = HIDDEN) -> nn.Sequential:
    """Two layers over the last axis."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))


class GlobalHead(nn.Module):
    """One vector per sample from its bottleneck: average over the valid part, then two layers."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.project = mlp(channels, outputs)

    def forward(self, bottleneck: Tensor, valid: Tensor) -> Tensor:
        """(batch, channels, *coarse) and bool (batch, 1, *spatial) -> (batch, outputs)."""
        pool: Callable[..., Tensor] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[bottleneck.ndim - 2]
        share = pool(valid.float(), tuple(bottleneck.shape[2:])).flatten(2)
        bottleneck = bottleneck.float().flatten(2)
        return self.project((bottleneck * share).sum(2) / share.sum(2).clamp(min=1e-6))


class WindowHead(nn.Module):
    """One vector per sliding window over the logits.

    A window is pooled to a grid of cells (the mean of their valid voxels), each cell goes through two 1x1
    convolutions C -> 2C -> C, and the cells of a window make up its vector. Windows overlap by half, so
    cells are pooled and convolved once and then shared.

    Args:
        classes: C.
        spatial: size of the patch.
        cell: edge of a cell in voxels; shorter on an axis with fewer than ``cells`` of them.
        cells: per window and axis; fewer on an axis with fewer voxels.
    """

    def __init__(self, classes: int, spatial: tuple[int, ...], cell: int, cells: int):
        super().__init__()
        self.cell = [max(1, min(cell, size // cells)) for size in spatial]
        self.cells = [min(cells, size // edge) for size, edge in zip(spatial, self.cell, strict=True)]
        self.channels = classes * prod(self.cells)
        self._pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(spatial)]
        self.convolve = mlp(classes, classes, hidden=2 * classes)

    def forward(self, logits: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and the valid share of every window.

        Args:
            logits: (batch, C, *spatial).
            valid: bool (batch, 1, *spatial).

        Returns:
            (batch, windows, channels) and (batch, windows).
        """
        share = self._pool(valid.float(), self.cell)
        cells = self._pool(logits * valid, self.cell) / share.clamp(min=1e-6)
        cells = self.convolve(cells.movedim(1, -1)).movedim(-1, 1)
        return self._windows(cells), self._windows(share).mean(2)

    def _windows(self, cells: Tensor) -> Tensor:
        for axis, size in enumerate(self.cells):
            cells = cells.unfold(2 + axis, size, max(1, size // 2))
        dimensions = len(self.cells)
        batch, channels, *rest = cells.shape
        return cells.reshape(batch, channels, -1, *rest[dimensions:]).transpose(1, 2).flatten(2)


class VoxelHead(nn.Module):
    """Representation of voxels from the decoder's features of all levels side by side.

    A 1x1 convolution per level, summed (one linear layer on levels side by side), then 1x1. Without a
    non-linearity between, the mean of representations is the representation of the mean.
    """

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        self.fuse = nn.Linear(channels, outputs)
        self.project = nn.Linear(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(..., channels of all levels) -> (..., outputs)."""
        return self.project(self.fuse(features))
