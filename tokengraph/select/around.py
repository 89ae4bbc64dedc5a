"""Around: another strategy's clusters inside one module, or a stretch of blocks, with every token back behind it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from tokengraph.cost import Cost
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.schedule import Schedule
from tokengraph.select.base import SPANS, Select, resolve
from tokengraph.select.tokens import Tokens

SPAN_NAMES = (*SPANS, "stage")


@dataclass(frozen=True)
class Around(Select):
    r"""Runs attention, MLP, a block or a stage of blocks on the clusters of another strategy; all tokens return.

    Around a module the residual stream keeps every token:
    :math:`x \leftarrow x + \operatorname{lift}(\operatorname{module}(\operatorname{reduce}(\operatorname{norm}(x))))`,
    with clusters chosen by x as it comes to the block. Around a block or a stage tokens leave and come back with what
    they lacked, :math:`\operatorname{lift}(x'_{\text{out}}) + x - \operatorname{lift}(x')`: a token that a pruning
    strategy drops stays idle and returns unchanged, one that merges gets the change of its cluster.

    Schedules count the tokens inside. Around a module or block an int or a list removes that many of all tokens in each
    block; ``{l: keep}`` keeps ``keep`` in each block from the one behind l finished blocks on, until ``"reconstruct"``.
    Around a stage write ``{2: 0.5, 6: "reconstruct"}``, or ``{2: 0.5, 6: ("reconstruct", 0.5), 10: "reconstruct"}`` for
    stages in turn. ``handle.trace.counts_inside`` has the tokens inside each block, and ``handle.trace.inside(i)``
    block i's map.

    Args:
        select: The strategy, by name, class or instance. It chooses by features; one that needs a class token's
            attention or a map is refused by ``attach``.
        span: ``"attention"``, ``"mlp"``, ``"both"`` of them by one map, ``"block"`` or ``"stage"``.
        sizes: Whether attention inside weighs clusters by size, if the strategy merges.

    Source: around attention: Bolya and Hoffman, *Token Merging for Fast Stable Diffusion*, 2023 (tomesd), and its code.
    Other strategies and spans here are our own combinations; a pruning strategy around a block idles tokens as IdleViT
    does, by another choice.
    """

    name: ClassVar[str] = "around"
    select: Any = "grid-tome"
    span: str = "attention"
    sizes: bool = True

    def __post_init__(self) -> None:
        if self.span not in SPAN_NAMES:
            raise ValueError(f"Expected span to be one of {', '.join(SPAN_NAMES)} (got {self.span!r}).")
        inner = resolve(self.select)
        begins = type(inner).begin is not Select.begin
        if isinstance(inner, Around) or inner.learns or inner.stores or begins or inner.placement == "ahead":
            raise ValueError(
                f"Expected a strategy that chooses clusters by the tokens it sees alone (got {type(inner).__name__}, "
                "which learns, stores, remembers the input, or has a place of its own)."
            )
        object.__setattr__(self, "select", inner)
        for name in ("merges", "needs_grid", "alone", "ragged"):
            object.__setattr__(self, name, getattr(inner, name))

    @property
    def placement(self) -> str:  # type: ignore[override]
        """``"around"``; for a stage ``"before"`` its first block."""
        return "before" if self.span == "stage" else "around"

    @property
    def around(self) -> str:  # type: ignore[override]
        """The span."""
        return self.span

    @property
    def holds(self) -> bool:
        """Tokens of a stage come back with what they lacked."""
        return self.span == "stage"

    @property
    def stores(self) -> bool:
        """As :attr:`holds`."""
        return self.holds

    @property
    def restores(self) -> bool:
        """Every token returns."""
        return True

    @property
    def reads(self) -> str:  # type: ignore[override]
        """Nothing, where the strategy can do with features; around a stage what the strategy reads."""
        if self.span == "stage" or self.select.reads in ("class", "map"):
            return self.select.reads
        return "nothing"

    @property
    def weighs(self) -> bool:
        """If sizes are asked for, as the strategy."""
        return self.sizes and self.select.weighs

    @property
    def own_budget(self) -> int | None:
        """As the strategy."""
        return self.select.own_budget

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Binds the strategy inside; see :meth:`tokengraph.Select.bind`."""
        inner, planned = self.select.bind(channels, depth, schedule)
        bound = copy.copy(self)
        object.__setattr__(bound, "select", inner)
        return bound, planned

    def acts(self, finished: int, keep: int, count: int) -> bool:
        """As the strategy."""
        return self.select.acts(finished, keep, count)

    def reduction_at(self, layer: int) -> str:
        """As the strategy."""
        return self.select.reduction_at(layer)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """The strategy's map; see :class:`tokengraph.Select`."""
        return self.select(tokens, budget)

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """As the strategy."""
        return self.select.makes(keep, num_tokens, grid)

    def fewest(self, num_tokens: int) -> int:
        """As the strategy."""
        return self.select.fewest(num_tokens)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost | None:
        """Of the choice, as the strategy."""
        return self.select.cost(num_tokens, keep, channels, head_width)
