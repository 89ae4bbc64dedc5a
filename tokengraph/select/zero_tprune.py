"""ZeroTPrune: prunes by the stationary importance of tokens in the graph of attention, and by similarity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_mask, check_tokens
from tokengraph.flat.segment import as_type
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import among_best, keep_best
from tokengraph.select.parts.graphs.halves import unit_rows
from tokengraph.select.parts.scores.page_rank import page_rank, rank_importance
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts

VARIANCE = (0.01, 0.7)  # published bounds


@explains
def zero_tprune(
    attention: Tensor,
    keys: Tensor,
    keep: int | list[int],
    similar: float | int = 0.5,
    rounds: int = 40,
    *,
    uniform: bool = False,
    variance: tuple[float, float] = VARIANCE,
    mask: Tensor | None = None,
) -> Assignment:
    """Drops tokens in two stages: those most similar to an important one, then those of least importance.

    One round of :func:`page_rank` ranks tokens. The lower half (U) are compared with the upper half (I) by cosine of
    keys, and the tokens of U most similar to one of I are dropped. On the others attention is normalised again,
    ``rounds`` rounds give their importance, and the best ``keep`` stay.

    Args:
        attention: The block's map, ``[B, H, P+N, P+N]``; the first tokens, of the prefix, vote but are not ranked.
        keys: ``[B, N, D]``.
        keep: Tokens an image.
        similar: How many leave by similarity, at most half of all: a count, or a share of those that leave.
        rounds: Rounds of the second walk.
        uniform: Whether the walk starts equal everywhere; else the first prefix token counts sqrt(P + N) times.
        variance: Heads count whose importance, scaled to mean one, has a variance within these bounds; if none has,
            all do.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``); kept tokens stay in order.

    Cost: ``O(rounds B H N^2)`` and ``O(B N^2 D / 4)``; no host synchronisation without a mask.

    Source: the idea is published (Wang et al., *Zero-TPrune*, CVPR 2024); normalisation, filter scale, split and
    restart are **our own**, as no code of the authors was found.
    """
    check_tokens(keys)
    check_tokens(attention, dims=(4,), name="attention of every head")
    if similar != similar:
        raise ValueError("Expected similar as a count or a share (got NaN).")
    check_mask(mask, keys, leading=True)
    return _zero_tprune(attention, keys, keep, similar, rounds, uniform, variance, mask)


def _zero_tprune(
    attention: Tensor,
    keys: Tensor,
    keep: int | list[int],
    similar: float | int,
    rounds: int,
    uniform: bool,
    variance: tuple[float, float],
    mask: Tensor | None,
) -> Assignment:
    budget = clamp_budget(keep, keys, mask)
    if isinstance(budget, int) and (budget >= keys.size(1) or keys.size(0) == 0):
        return keep_best(keys.new_zeros(keys.shape[:2]), budget, mask)
    prefix = attention.size(2) - keys.size(1)
    weight = 1.0 if uniform or prefix == 0 else "sqrt"
    with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
        attention = as_type(attention, torch.float32)
        first = rank_importance(page_rank(attention, 1, weight, prefix, mask), prefix, variance, mask)
        if isinstance(budget, list):
            counts = valid_counts(keys, mask)
            leave: int | list[int] = [similar_of(similar, n, k) for n, k in zip(counts, budget, strict=True)]
        else:
            leave = similar_of(similar, keys.size(1), budget)
        left = drop_similar(first, keys, leave, mask)
        second = rank_importance(page_rank(attention, rounds, weight, prefix, left), prefix, variance, left)
        return keep_best(second.masked_fill(~left, -1.0), budget, mask)


def similar_of(similar: float | int, count: int, keep: int) -> int:
    """Tokens that leave by similarity, of ``count`` tokens of which ``keep`` are to stay."""
    gone = count - keep
    wanted = similar if isinstance(similar, int) else int(similar * gone)
    return max(min(wanted, gone, count // 2), 0)


def drop_similar(importance: Tensor, keys: Tensor, leave: int | list[int], mask: Tensor | None) -> Tensor:
    """Marks the tokens that stay, ``[B, N]``, where those of the lower half most similar to the upper one are dropped.

    Args:
        importance: ``[B, N]``.
        keys: ``[B, N, D]``.
        leave: How many are dropped, one number or one for each image.
        mask: ``[B, N]`` bool, True where there is a token.
    """
    there = torch.ones_like(importance, dtype=torch.bool) if mask is None else mask
    counts = there.sum(dim=1)
    best = (counts + 1) // 2  # of I; U has floor(n / 2)
    order = importance.masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(importance.size(1), device=keys.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    upper = rank < best[:, None]
    unit = unit_rows(keys)
    edges = torch.matmul(unit, unit.transpose(1, 2)).masked_fill(~(upper & there)[:, None], -torch.inf)
    likeness = edges.amax(dim=2).masked_fill(upper | ~there, -torch.inf)
    return there & ~among_best(likeness, leave, None)


@dataclass(frozen=True)
class ZeroTPrune(Select):
    """Zero-TPrune as a strategy, after a block, by its attention map and keys; see :func:`zero_tprune`.

    Args:
        plan: ``{l: (keep, similar)}``: after l blocks ``keep`` tokens stay, and ``similar`` of the others leave by
            similarity; ``None``: a schedule says how many stay.
        rounds: ``"auto"``: 40 in the first quarter of the depth, 8 in the middle, 1 in the last quarter; a number; or
            ``{l: rounds}``.
        similar: Where no plan says it: the share of tokens that leave by similarity.
        uniform: As in :func:`zero_tprune`.

    Source: see :func:`zero_tprune`.
    """

    name: ClassVar[str] = "zero-tprune"
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "map+keys"
    plan: Mapping[int, tuple[int, int]] | None = None
    rounds: str | int | Mapping[int, int] = "auto"
    similar: float = 0.5
    uniform: bool = False
    depth: int = 12

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for a model of ``depth`` blocks, and its schedule."""
        if schedule is None and self.plan is not None:
            schedule = {layer: keep for layer, (keep, _) in self.plan.items()}
        bound = ZeroTPrune(self.plan, self.rounds, self.similar, self.uniform, depth)
        return bound, super().bind(channels, depth, schedule)[1]

    def rounds_at(self, finished: int) -> int:
        """Returns the rounds of the walk after so many blocks."""
        if isinstance(self.rounds, int):
            return self.rounds
        if isinstance(self.rounds, Mapping):
            return self.rounds.get(finished, 8)
        part = max(self.depth // 4, 1)
        return 40 if finished <= part else 1 if finished > self.depth - part else 8

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.attention is None:
            raise ValueError("Expected tokens of a block's attention (got tokens outside a model). Attach ZeroTPrune.")
        finished = tokens.layer + 1
        similar = self.similar if self.plan is None or finished not in self.plan else self.plan[finished][1]
        whole, rounds = tokens.attention.whole_map(), self.rounds_at(finished)
        return _zero_tprune(whole, tokens.keys, budget, similar, rounds, self.uniform, VARIANCE, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts 40 rounds over the map, as in early blocks, and the products of the halves."""
        heads = max(channels // head_width, 1)
        walk = Cost(40 * heads * num_tokens**2, 4 * 40 * heads * num_tokens**2)
        half = num_tokens // 2
        return walk + distance_cost(half, num_tokens - half, head_width)
