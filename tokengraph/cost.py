"""What each step costs, counted: floating-point operations and bytes. Analytic, so it holds on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Cost:
    """Operations and memory traffic of one step, for one image.

    A multiply-add counts as two operations. Bytes are those that must move if each input is read once and each output
    written once, in float32. Not counted: sorting, softmax, normalisation, activations, kernel launches.

    Args:
        flops: Floating-point operations.
        bytes: Bytes read and written.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.bytes * times)


def distance_cost(queries: int, candidates: int, channels: int) -> Cost:
    """All products between ``queries`` and ``candidates`` tokens of ``channels`` features."""
    flops = 2 * queries * candidates * channels + 2 * queries * candidates
    return Cost(flops, 4 * (queries * channels + candidates * channels + queries * candidates))


def build_cost(num_tokens: int, channels: int, *, neighbors: int) -> Cost:
    """Building a k-nearest-neighbour graph by the product form.

    All distances, and for each token ``neighbors`` edges out of it: an int64 id and a float32 weight each.
    """
    return distance_cost(num_tokens, num_tokens, channels) + Cost(0, 12 * num_tokens * neighbors)


def reduce_cost(num_tokens: int, keep: int, channels: int) -> Cost:
    """Size-weighted mean of ``num_tokens`` rows into ``keep``: one product and one addition an entry."""
    flops = 2 * num_tokens * channels + 2 * num_tokens
    return Cost(flops, 4 * (2 * num_tokens * channels + keep * channels + 3 * num_tokens))


def lift_cost(num_tokens: int, keep: int, channels: int) -> Cost:
    """Copying ``keep`` rows out to ``num_tokens``: no arithmetic."""
    return Cost(0, 4 * (keep + num_tokens) * channels + 8 * num_tokens)


def attention_cost(num_tokens: int, channels: int) -> Cost:
    """One attention half: four ``C x C`` projections, ``QK^T`` and ``AV`` over all heads (fused: no map in memory)."""
    flops = 8 * num_tokens * channels**2 + 4 * num_tokens**2 * channels
    return Cost(flops, 4 * (4 * channels**2 + 8 * num_tokens * channels))


def mlp_cost(num_tokens: int, channels: int, hidden: int) -> Cost:
    """One MLP half: two projections."""
    return Cost(4 * num_tokens * channels * hidden, 4 * (2 * channels * hidden + 2 * num_tokens * (channels + hidden)))


@dataclass(frozen=True)
class ModelCost:
    """Costs of a run through a vision transformer's blocks for one image, stage by stage.

    Patch embedding, final norm and head are not counted: no strategy changes them.
    """

    attention: Cost
    mlp: Cost
    select: Cost
    reduce: Cost
    lift: Cost
    counted: bool  # whether the strategy says what its choice costs

    @property
    def total(self) -> Cost:
        """All stages together."""
        return self.attention + self.mlp + self.select + self.reduce + self.lift


class Costed(Protocol):
    """What :func:`vit_cost` asks of a strategy; see :class:`tokengraph.Select`."""

    placement: ClassVar[str]

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64, /) -> Cost | None:
        """What one step costs, for one image; ``None``: it does not say."""
        ...


def vit_cost(
    counts: Sequence[int],
    channels: int,
    *,
    hidden: int | None = None,
    num_prefix: int = 1,
    head_width: int = 64,
    select: Costed | None = None,
    lift: bool = False,
) -> ModelCost:
    """Counts a plain vision transformer with ``counts`` patch tokens before the first block and after each block.

    Args:
        counts: ``depth + 1`` numbers, as :func:`tokengraph.schedule.tokens_per_layer` gives.
        channels: C.
        hidden: Width of the MLP; ``4 * C`` by default.
        num_prefix: P.
        head_width: D of one attention head.
        select: The strategy, for its own cost and for where in the block it acts.
        lift: Count bringing the last tokens back to every patch.

    Example:
        >>> plain = vit_cost([196] * 13, 384)
        >>> round(plain.total.flops / 1e9, 2)  # the blocks of ViT-S/16
        9.08
    """
    hidden = 4 * channels if hidden is None else hidden
    attention = mlp = chosen = reduced = lifted = Cost()
    counted = True
    for before, after in zip(counts[:-1], counts[1:], strict=True):
        inside = select is not None and select.placement == "inside" and after < before
        attention += attention_cost(before + num_prefix, channels)
        mlp += mlp_cost((after if inside else before) + num_prefix, channels, hidden)
        if after > before:  # reconstruction
            lifted += lift_cost(after, before, channels)
        if after >= before or select is None:
            continue
        own = select.cost(before, after, channels, head_width)
        counted &= own is not None
        chosen += own or Cost()
        reduced += reduce_cost(before + num_prefix, after + num_prefix, channels)
    lifted += lift_cost(counts[0], counts[-1], channels) if lift else Cost()
    return ModelCost(attention, mlp, chosen, reduced, lifted, counted)
