"""Runs a strategy on the features of tiles, and finds the token that stands for each cluster."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.edges.grid import grid_positions
from tokengraph.maps.counts import with_ptr
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens

Map = Assignment | SoftAssignment


def choose(
    select: Select,
    x: Tensor,
    keep: int,
    grid: tuple[int, ...] | None,
    attention: AttentionStats | None = None,
    *,
    tokens: Tokens | None = None,
) -> Map:
    """Maps the tokens of tiles of one size to ``keep`` clusters a tile, in several rounds if one cannot reach that.

    Args:
        select: The strategy.
        x: Features, ``[B, n, C]``, without gradient.
        keep: Clusters a tile; ``n`` and more keep everything, and nothing is computed.
        grid: ``(H, W)`` of the tile, or ``(T, H, W)``; ``None`` if its tokens lie on no grid.
        attention: The tower's attention over these tokens, for strategies that read it.
        tokens: The tokens as the strategy sees them, if they are not the full grid; ``x`` and ``grid`` are theirs.

    Raises:
        ValueError: If the strategy needs a grid or attention that is not there.
    """
    batch, count, channels = x.shape
    if keep >= count:
        ptr = torch.arange(0, batch * count + 1, count, device=x.device)
        return replace(Assignment.identity(batch * count, ptr=ptr, device=x.device), cluster_ptr=ptr)
    if select.needs_grid and grid is None:
        raise ValueError(
            f"Expected tokens on a grid for {type(select).__name__} (got {count} tokens without one). Use a strategy "
            'that reads features alone, such as "dpc-knn".'
        )
    tokens = _full(x, grid, attention) if tokens is None else tokens
    whole, now = None, count
    while now > keep:
        step = with_ptr(select(tokens, max(keep, select.fewest(now))), batch)
        whole = step if whole is None else whole.then(step)
        after = step.num_clusters // batch
        if step.counts is not None or after <= keep or after >= now:
            break  # ragged: a threshold decides; not fewer: it cannot go on
        tokens, now = _coarse(tokens, step, after, select), after
    assert whole is not None
    return with_ptr(whole, batch)


def _full(x: Tensor, grid: tuple[int, ...] | None, attention: AttentionStats | None) -> Tokens:
    """Tokens of the full grid."""
    batch, count = x.shape[:2]
    prefix = 0 if attention is None else attention.num_prefix
    tokens = Tokens(x, x.new_ones(batch, count, dtype=torch.float32), grid, attention=attention, num_prefix=prefix)
    if grid is not None:
        pos = grid_positions(grid, device=x.device)
        tokens.locate = lambda: pos.expand(batch, -1, -1)
    return tokens


def _coarse(tokens: Tokens, step: Map, count: int, select: Select) -> Tokens:
    """The tokens of the next round."""
    batch = tokens.x.size(0)
    x, size = reduce_rows(step, tokens.x.flatten(0, 1), select, None if tokens.size is None else tokens.size.flatten())
    coarse = Tokens(x.view(batch, count, -1), size.view(batch, count), tokens.grid, full=False)
    if tokens.locate is not None:
        pos = step.by_size().reduce(tokens.pos.flatten(0, 1), tokens.size.flatten())[0]  # type: ignore[union-attr]
        coarse.locate = lambda: pos.view(batch, count, -1)
    return coarse


def reduce_rows(step: Map, rows: Tensor, select: Select, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Reduces rows by a map as the strategy does outside a model; gradients reach the rows."""
    if isinstance(step, Assignment):
        return step.reduce(rows, size, reduce=select.reduction_at(-1))
    return step.reduce(rows, size)


def representatives(step: Map) -> Tensor:
    """The token whose place each cluster takes, ``[K]`` flat ids, all different.

    The centre, where the map has centres; otherwise the first token of a hard cluster, and the heaviest token of a
    soft one. A token that is the heaviest of several clusters stands for the first of them, and the others take their
    next heaviest.

    Cost: one pass; for soft maps without centres one read on the host for each cluster whose token is taken.
    """
    if step.centers is not None:
        return step.centers
    total, tokens = step.num_clusters, step.num_tokens
    if isinstance(step, Assignment):
        token = torch.arange(tokens, device=step.cluster.device)
        first = token.new_full((total + 1,), tokens)
        return first.scatter_reduce(0, step.cluster, token, "amin")[:total]
    order = step.weight.detach().float().argsort(descending=True, stable=True)
    order = order[step.cluster[order].argsort(stable=True)]  # by cluster, the heaviest first
    taken: set[int] = set()
    stands = [-1] * total
    for cluster, token in zip(step.cluster[order].tolist(), step.token[order].tolist(), strict=True):
        if stands[cluster] < 0 and token not in taken:
            stands[cluster] = token
            taken.add(token)
    free = iter(t for t in range(tokens) if t not in taken)
    stands = [next(free) if s < 0 else s for s in stands]  # a cluster of taken tokens alone, or of none
    return torch.tensor(stands, device=step.token.device)
