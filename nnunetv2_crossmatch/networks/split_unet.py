"""An encoder/decoder U-Net called in two halves or level by level, with few graphs alive at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Features = list[Tensor]
Outputs = Tensor | list[Tensor]  # with deep supervision a list, full resolution first


class SplitUNet:
    """Calls the encoder and the decoder of a U-Net separately; holds no weights of its own.

    Args:
        network: has ``encoder(x) -> list of skips, bottleneck last`` and ``decoder(skips) -> logits`` or,
            with deep supervision, a list of logits with the full resolution first. All encoder/decoder
            networks of dynamic_network_architectures do.
        autocast: makes the context every forward pass runs in. A context per pass, so that weight casts
            cached by a pass without gradient never reach one with gradient.

    Raises:
        TypeError: the network has no such halves (transformers such as Primus).
    """

    def __init__(self, network: nn.Module, autocast: Callable[[], AbstractContextManager] = nullcontext):
        if not self.can_split(network):
            raise TypeError(
                f"{type(network).__name__} has no encoder and decoder to call separately. Plan with an "
                "encoder/decoder U-Net (PlainConvUNet, ResidualEncoderUNet) to use this trainer."
            )
        self.encoder: nn.Module = network.encoder  # type: ignore[assignment]
        self.decoder: nn.Module = network.decoder  # type: ignore[assignment]
        self._autocast = autocast
        self._by_levels = _forward_levels

    @staticmethod
    def can_split(module: nn.Module) -> bool:
        """Whether it has an encoder and a decoder to call."""
        return all(isinstance(getattr(module, half, None), nn.Module) for half in ("encoder", "decoder"))

    def encode(self, image: Tensor) -> Features:
        """Skips of ``image`` (batch, channels, *spatial), finest first, bottleneck last."""
        with self._autocast():
            return list(self.encoder(image))

    def decode(self, features: Features) -> Tensor:
        """Full-resolution logits (batch, classes, *spatial) in float32."""
        with self._autocast():
            logits = self.decoder(features)
        return (logits if isinstance(logits, Tensor) else logits[0]).float()

    def logits(self, image: Tensor) -> Tensor:
        """Full-resolution logits of ``image``, as :meth:`decode`."""
        return self.decode(self.encode(image))

    def outputs(self, image: Tensor, change: Callable[[Features], Features] = list) -> Outputs:
        """What the network's forward returns: logits, with deep supervision of every level.

        ``change`` is done to the features between encoder and decoder.
        """
        with self._autocast():
            return self.decoder(change(self.encoder(image)))

    def forward_levels(self, image: Tensor, *, economical: bool = False) -> tuple[Outputs, Features]:
        """What the network's forward returns, and the decoder's feature map of every level.

        Args:
            image: (batch, channels, *spatial).
            economical: compute the finest third of the levels (rounded down) once more in backward instead of
                keeping what they need for it. For a graph that waits for another one.

        Returns:
            outputs, and the maps (batch, channels of the level, *spatial of the level) in front of the
            segmentation layers, finest first; the bottleneck is the coarsest level's.
        """
        with self._autocast():
            return self._by_levels(self.encoder, self.decoder, image, economical)

    def compile(self) -> None:
        """Compile the halves in place; nnU-Net compiles the network, whose halves would run eagerly beside it."""
        self.encoder.compile()
        self.decoder.compile()
        self._by_levels = torch.compile(_forward_levels)

    def twin(self, network: nn.Module) -> "SplitUNet":
        """Another network of the same kind, called the same way."""
        return SplitUNet(network, self._autocast)

    @contextmanager
    def relay(self, image: Tensor) -> Iterator[Features]:
        """Encode once, decode as often as wanted, keep one decoder graph at a time.

        Yields the features as leaves. Call backward on the loss of each decoding before the next one;
        their gradients gather in the leaves and pass once through the encoder when the context closes.
        The parameters' gradients equal those of the sum of the losses.
        """
        skips = self.encode(image)
        leaves = [skip.detach().requires_grad_() for skip in skips]
        yield leaves
        reached = [(skip, leaf.grad) for skip, leaf in zip(skips, leaves, strict=True) if leaf.grad is not None]
        leaves.clear()  # the caller's name for them would keep them alive through the next stream
        if reached:
            torch.autograd.backward([skip for skip, _ in reached], [grad for _, grad in reached])


def _forward_levels(encoder: Any, decoder: Any, image: Tensor, economical: bool) -> tuple[Outputs, Features]:
    """The forward of dynamic_network_architectures' U-Nets, which keeps no feature map; calls their levels itself."""
    count = len(encoder.stages)
    recomputed = count // 3 if economical else 0  # levels

    def run(level: int, function: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(function, *inputs, use_reentrant=False) if level < recomputed else function(*inputs)

    x = image if getattr(encoder, "stem", None) is None else run(0, encoder.stem, image)
    skips = []
    for level, stage in enumerate(encoder.stages):
        x = run(level, stage, x)
        skips.append(x)
    levels, outputs = [x], []
    for i, (upsample, stage) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
        level = count - 2 - i
        segment = decoder.seg_layers[i] if decoder.deep_supervision or level == 0 else None
        x, output = run(level, _up, upsample, stage, segment, x, skips[level])
        levels.append(x)
        outputs.append(output)
    return outputs[::-1] if decoder.deep_supervision else outputs[-1], levels[::-1]


def _up(upsample: nn.Module, stage: nn.Module, segment: nn.Module | None, x: Tensor, skip: Tensor) -> Any:
    """One level of a decoder: its feature map and, where there is a layer for it, its logits."""
    x = stage(torch.cat((upsample(x), skip), 1))
    return x, None if segment is None else segment(x)


def draw_channel_masks(features: Features, p: float) -> Features:
    """Channel dropout masks, one (batch, channels, 1, ...) per level: 0 with probability p, else 1/(1-p)."""
    return [
        torch.empty(feature.shape[:2], device=feature.device, dtype=feature.dtype)
        .bernoulli_(1 - p)
        .div_(1 - p)
        .reshape(*feature.shape[:2], *[1] * (feature.ndim - 2))
        for feature in features
    ]


def drop_channels(features: Features, masks: Features) -> Features:
    """Multiplies every level, bottleneck included, with its mask (whatever train() or eval() says)."""
    return [feature * mask for feature, mask in zip(features, masks, strict=True)]
