"""Counts the multiply-adds of a model under a setting, choosing and merging included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.cost import vit_cost
from tokengraph.evaluate.own import find_own
from tokengraph.select.base import Select

CONVENTION = (
    "tokengraph.cost: multiply-adds of the blocks (projections, QK^T, AV, MLP) plus choosing and merging tokens; patch "
    "embedding, norms, softmax and head are not counted. Not comparable with other counters."
)


@dataclass(frozen=True)
class Anatomy:
    """The numbers of a model from which its cost follows.

    Args:
        depth: Blocks.
        channels: C.
        hidden: Width of a two-layer MLP with as many weights as the model's.
        prefix: P.
        heads: Heads of one attention.
    """

    depth: int
    channels: int
    hidden: int
    prefix: int
    heads: int


def anatomy(model: nn.Module, own: Adapter | None = None) -> Anatomy | None:
    """Counts a supported model's parts, or by its adapter those of a user's own; ``None`` for other models."""
    try:
        core, adapter = find_own(model, own)
        blocks = adapter.blocks(core)
    except ValueError:
        return None
    channels = adapter.channels(core)
    first: Any = blocks[0]
    wide = [p for n, p in first.named_parameters() if p.dim() == 2 and "bias" not in n.rsplit(".", 1)[-1]]
    weights = sum(p.numel() for p in wide) - 4 * channels**2  # all products except the attention's
    names = ("num_heads", "num_attention_heads")
    heads = next(
        (int(getattr(m, n)) for m in first.modules() for n in names if isinstance(getattr(m, n, None), int)), 1
    )
    return Anatomy(len(blocks), channels, max(1, round(weights / (2 * channels))), adapter.num_prefix(core), heads)


def multiply_adds(
    model: Anatomy, counts: Sequence[float], select: Select | None = None, *, lift: bool = False
) -> tuple[float, bool]:
    """Returns the multiply-adds of one image, and True if they include the cost of the strategy's choice.

    Args:
        model: The anatomy.
        counts: Patch tokens before the first block and after each; means if images differ.
        select: The strategy.
        lift: Counts lifting tokens to every patch (a copy without arithmetic).
    """
    whole = [round(n) for n in counts]
    cost = vit_cost(
        whole,
        model.channels,
        hidden=model.hidden,
        num_prefix=model.prefix,
        head_width=model.channels // model.heads,
        select=select,
        lift=lift,
    )
    return cost.total.flops / 2, cost.counted
