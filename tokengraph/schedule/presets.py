"""Published schedules by name of their method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokengraph.kinds import explains
from tokengraph.schedule.budget import check_layers


@explains
def evit(rate: float | Sequence[float] = 0.7, layers: Sequence[int] = (4, 7, 10), fuse: bool = True) -> EViT:
    """Keeps ``ceil(rate * n)`` of the n current tokens at each of ``layers``, and one more: the fused token.

    The fused token of an earlier layer counts among the n. Where all tokens but one would stay, none leaves: one token
    fused by itself would save nothing.

    Args:
        rate: Share in (0, 1], for all layers or one for each; published: 0.5 to 0.9.
        layers: Numbers of finished blocks, rising; the default acts inside blocks 3, 6 and 9, counted from 0.
        fuse: Whether the others become one more token, as ``TopK(fuse=True)`` makes it.

    Raises:
        ValueError: If a rate is out of range, layers do not rise, or there is not one rate for each layer.

    Example:
        >>> import tokengraph as tg
        >>> tg.schedule.tokens_per_layer(tg.schedule.evit(0.7), 12, 196)[4::3]
        [139, 99, 71]

    Source: the code of Liang et al., *EViT*, ICLR 2022.
    """
    rates = [float(rate)] * len(layers) if isinstance(rate, int | float) else [float(r) for r in rate]
    if len(rates) != len(layers):
        raise ValueError(f"Expected one rate for each of {len(layers)} layers (got {len(rates)}).")
    if any(not 0 < r <= 1 for r in rates):
        raise ValueError(f"Expected rates in (0, 1] (got {rates}).")
    if list(layers) != sorted(set(layers)) or any(layer < 1 for layer in layers):
        raise ValueError(f"Expected rising layers of at least 1 (got {list(layers)}). Layer l: l blocks are finished.")
    return EViT(tuple(rates), tuple(layers), fuse)


@dataclass(frozen=True)
class EViT:
    """The rule that :func:`evit` makes."""

    rates: tuple[float, ...]
    layers: tuple[int, ...]
    fuse: bool

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens removed in each block."""
        check_layers(self.layers, depth)
        removed, left = [0] * depth, num_tokens
        for layer, rate in zip(self.layers, self.rates, strict=True):
            kept = min(math.ceil(rate * left) + self.fuse, left)
            removed[layer - 1], left = left - kept, kept
        return removed
