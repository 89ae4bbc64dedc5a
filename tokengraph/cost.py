"""Counts floating-point operations and bytes of each step analytically, so the numbers hold on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from tokengraph.kinds import explains


@dataclass(frozen=True)
class Cost:
    """Operations and memory traffic of one step, for one image.

    A multiply-add counts as two operations. Bytes are the traffic if each input is read once and each output is written
    once, in float32. Sorting, softmax, normalisation, activations and kernel launches are not counted.

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


@explains
def distance_cost(queries: int, candidates: int, channels: int) -> Cost:
    """Counts all products between ``queries`` and ``candidates`` tokens of ``channels`` features.

    Args:
        queries: Number of query tokens.
        candidates: Number of candidate tokens.
        channels: C.
    """
    flops = 2 * queries * candidates * channels + 2 * queries * candidates
    return Cost(flops, 4 * (queries * channels + candidates * channels + queries * candidates))


@explains
def build_cost(num_tokens: int, channels: int, *, neighbors: int) -> Cost:
    """Counts building a k-nearest-neighbour graph by matrix products.

    It counts all distances, and ``neighbors`` edges for each token: an int64 id and a float32 weight each.

    Args:
        num_tokens: N.
        channels: C.
        neighbors: k.
    """
    return distance_cost(num_tokens, num_tokens, channels) + Cost(0, 12 * num_tokens * neighbors)


@explains
def reduce_cost(num_tokens: int, keep: int, channels: int) -> Cost:
    """Counts the size-weighted mean of ``num_tokens`` rows into ``keep`` rows: a product and an addition per entry.

    Args:
        num_tokens: N.
        keep: K.
        channels: C.
    """
    flops = 2 * num_tokens * channels + 2 * num_tokens
    return Cost(flops, 4 * (2 * num_tokens * channels + keep * channels + 3 * num_tokens))


@explains
def lift_cost(num_tokens: int, keep: int, channels: int) -> Cost:
    """Counts copying ``keep`` rows to ``num_tokens`` rows: no arithmetic.

    Args:
        num_tokens: N.
        keep: K.
        channels: C.
    """
    return Cost(0, 4 * (keep + num_tokens) * channels + 8 * num_tokens)


@explains
def attention_cost(num_tokens: int, channels: int) -> Cost:
    """Counts the attention half of a block: four ``C x C`` projections, ``QK^T`` and ``AV``, without map in memory.

    Args:
        num_tokens: Tokens with prefix tokens, P+N.
        channels: C.
    """
    flops = 8 * num_tokens * channels**2 + 4 * num_tokens**2 * channels
    return Cost(flops, 4 * (4 * channels**2 + 8 * num_tokens * channels))


@explains
def mlp_cost(num_tokens: int, channels: int, hidden: int) -> Cost:
    """Counts the MLP half of a block: two projections.

    Args:
        num_tokens: Tokens with prefix tokens, P+N.
        channels: C.
        hidden: Width of the hidden layer.
    """
    return Cost(4 * num_tokens * channels * hidden, 4 * (2 * channels * hidden + 2 * num_tokens * (channels + hidden)))


@dataclass(frozen=True)
class ModelCost:
    """Costs of the blocks of a vision transformer for one image, by stage.

    Patch embedding, final norm and head are not counted, because no strategy changes them.
    """

    attention: Cost
    mlp: Cost
    select: Cost
    reduce: Cost
    lift: Cost
    counted: bool  # True if the strategy states the cost of its choice

    @property
    def total(self) -> Cost:
        """The sum of all stages."""
        return self.attention + self.mlp + self.select + self.reduce + self.lift


class Costed(Protocol):
    """The part of a strategy that :func:`vit_cost` needs; see :class:`tokengraph.Select`."""

    placement: ClassVar[str]
    around: ClassVar[str]

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64, /) -> Cost | None:
        """Returns the cost of one step for one image, or ``None`` if the strategy does not state it."""
        ...


@explains
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
        select: The strategy, for its own cost and its place in the block. Around a module, counts behind the first
            are those inside each block.
        lift: Also count the lift of the last tokens to every patch.

    Returns:
        The costs by stage, for one image.

    Example:
        >>> plain = vit_cost([196] * 13, 384)
        >>> round(plain.total.flops / 1e9, 2)  # the blocks of ViT-S/16
        9.08
    """
    hidden = 4 * channels if hidden is None else hidden
    if select is not None and select.placement == "around":
        return _around_cost(counts, channels, hidden, num_prefix, head_width, select)
    attention = mlp = chosen = reduced = lifted = Cost()
    counted = True
    for index, (before, after) in enumerate(zip(counts[:-1], counts[1:], strict=True)):
        at = getattr(select, "for_block", None)  # a composition has another strategy in each block
        acting: Costed | None = select if at is None else at(index)
        inside = acting is not None and acting.placement in ("inside", "ahead") and after < before
        ahead = inside and acting is not None and acting.placement == "ahead"
        attention += attention_cost((after if ahead else before) + num_prefix, channels)
        mlp += mlp_cost((after if inside else before) + num_prefix, channels, hidden)
        if after > before:  # reconstruction
            lifted += lift_cost(after, before, channels)
        if after >= before or acting is None:
            continue
        own = acting.cost(before, after, channels, head_width)
        counted &= own is not None
        chosen += own or Cost()
        reduced += reduce_cost(before + num_prefix, after + num_prefix, channels)
    lifted += lift_cost(counts[0], counts[-1], channels) if lift else Cost()
    return ModelCost(attention, mlp, chosen, reduced, lifted, counted)


def _around_cost(
    counts: Sequence[int], channels: int, hidden: int, num_prefix: int, head_width: int, select: Costed
) -> ModelCost:
    """:func:`vit_cost` of a strategy around a module: each block chooses, reduces and lifts by itself."""
    attention = mlp = chosen = reduced = lifted = Cost()
    counted, tokens = True, counts[0]
    for inside in counts[1:]:
        attention += attention_cost((tokens if select.around == "mlp" else inside) + num_prefix, channels)
        mlp += mlp_cost((tokens if select.around == "attention" else inside) + num_prefix, channels, hidden)
        if inside >= tokens:
            continue
        own = select.cost(tokens, inside, channels, head_width)
        counted &= own is not None
        chosen += own or Cost()
        for _ in range(2 if select.around == "both" else 1):
            reduced += reduce_cost(tokens + num_prefix, inside + num_prefix, channels)
            lifted += lift_cost(tokens, inside, channels)
    return ModelCost(attention, mlp, chosen, reduced, lifted, counted)
