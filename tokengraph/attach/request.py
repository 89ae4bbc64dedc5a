"""What was asked for when a strategy was attached to a plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokengraph.adapters.base import Adapter
from tokengraph.attention.size_bias import SizeRule
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select


@dataclass(frozen=True)
class Request:
    """What was asked for, the same for every block of a model.

    Args:
        adapter: How the model is built.
        select: The strategy, as it was bound to the model.
        schedule: Of the strategy.
        rule: How attention weighs keys by size.
        lift: Whether the model gives every input patch back.
        run: The block's body; see :func:`tokengraph.attach.block.run_block`.
        again: Numbers of finished blocks after which every patch comes back before the strategy chooses again.
    """

    adapter: Adapter
    select: Select
    schedule: Schedule
    rule: SizeRule
    lift: bool
    run: Callable[..., Tensor]
    again: frozenset[int] = frozenset()
