"""The resolved arguments with which a strategy was attached to a plain model."""

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
    """The resolved arguments of ``attach``, shared by every block of a model.

    Args:
        adapter: The adapter of the model's family.
        select: The strategy, bound to the model.
        schedule: The strategy's schedule.
        rule: How attention weighs keys by size.
        lift: True if the model returns every input patch.
        run: The block's body; see :func:`tokengraph.attach.block.run_block`.
        again: Numbers of finished blocks after which every patch is restored before the strategy chooses again.
    """

    adapter: Adapter
    select: Select
    schedule: Schedule
    rule: SizeRule
    lift: bool
    run: Callable[..., Tensor]
    again: frozenset[int] = frozenset()
