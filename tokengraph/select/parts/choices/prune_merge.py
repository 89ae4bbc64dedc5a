"""DiffRate's step: of tokens by rank, the last drop, and those in front of them merge into the first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.layout import take_rows
from tokengraph.flat.looks import may_write
from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import counting, equal_ptr, ones, starts, table
from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.graphs.halves import EPS, SAME, cosines, unit_rows
from tokengraph.select.tokens import below, clamp_budget, valid_counts

CHUNK = 64  # rows of similarities measured at a time


def check_merge_by(merge_by: str) -> None:
    """Raises ValueError for another order of merging than DiffRate has."""
    if merge_by not in ("attention", "similarity"):
        raise ValueError(f"Expected merge_by to be 'attention' or 'similarity' (got {merge_by!r}).")


def ranks(score: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens by falling score ``[B, N]``, ties by index and others than ``mask`` last, and the rank of each token."""
    score = score.detach() if mask is None else score.detach().masked_fill(~mask, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(score.size(1), device=score.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, place)


def all_cosines(x: Tensor) -> Tensor:
    """Cosines of all pairs, ``[B, N, N]`` float32, without gradient."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit = unit_rows(x)
        return cosines(unit, unit)


def ranks_by_similarity(rank: Tensor, edges: Tensor, until: int | list[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Ranks again the tokens in front of ``until``: the most similar to one of a better rank comes last.

    Args:
        rank: Place of each token by score, ``[B, N]``.
        edges: Similarities of all pairs, ``[B, N, N]``.
        until: Places from it on stay behind all others; for all images or for each, also as ``[B, 1]``.

    Returns:
        As :func:`ranks`.

    Cost: one more ``[B, N, N]`` matrix.
    """
    better = rank[:, None] < rank[:, :, None]
    closest = edges.masked_fill(~better, -torch.inf).amax(dim=2)
    return ranks(-closest, below(rank, until) if isinstance(until, list) else rank < until)


def _order_by_similarity(x: Tensor, first: Tensor) -> Tensor:
    """:func:`ranks_by_similarity` for equal images: all tokens, the most similar of ``first`` behind the others.

    Args:
        x: ``[B, N, C]``.
        first: Tokens that do not drop, by falling score, ``[B, P]``.

    Returns:
        ``[B, N]``, ties by index.

    Cost: two thirds of the product of all pairs of P tokens, as only similarities to better tokens are measured.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit, closest = unit_rows(take_rows(x, first)), []
        for start in range(0, first.size(1), CHUNK):
            rows = unit[:, start : start + CHUNK]
            edges = torch.matmul(rows, unit[:, : start + CHUNK].transpose(1, 2))
            edges[:, :, start:].masked_fill_(_not_below(rows.size(1), x.device), -torch.inf)
            closest.append(edges.amax(dim=2))
        score = x.new_full(x.shape[:2], -torch.inf, dtype=unit.dtype)
        score.scatter_(1, first, -torch.cat(closest, dim=1).clamp_max(SAME))
    return score.argsort(dim=1, descending=True, stable=True)


def _not_below(count: int, device: torch.device) -> Tensor:
    """Returns ``[count, count]`` bool, True where the column is not below the row."""
    return _upper(count, str(device))


@table(CHUNK)
def _upper(count: int, device: str) -> Tensor:
    return torch.ones(count, count, dtype=torch.bool, device=device).triu()


def _between(x: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Cosines of few tokens with others, ``[B, S, T]``: all rows are read in place, and only the sources copied."""
    if x.size(2) % 16:  # products of such widths round by a row's address: see unit_rows
        unit = unit_rows(x)
        return cosines(take_rows(unit, sources), take_rows(unit, targets))
    wide = as_type(x.detach(), torch.float32)
    length = torch.linalg.vector_norm(wide, dim=2).clamp_min(EPS)
    rows = take_rows(wide, sources) / length.gather(1, sources)[..., None]
    edges = _columns(torch.matmul(rows, wide.transpose(1, 2)), targets)
    return (edges / length.gather(1, targets)[:, None]).clamp_max(SAME)


def _columns(edges: Tensor, targets: Tensor) -> Tensor:
    """Entries ``[B, S, T]`` of ``edges [B, S, N]`` for targets ``[B, T]``."""
    return edges.gather(2, targets[:, None].expand(-1, edges.size(1), -1))


def prune_and_merge(
    score: Tensor,
    x: Tensor,
    prune: int | list[int],
    merge: int | list[int],
    size: Tensor | None,
    mask: Tensor | None,
    official: bool = False,
    similar_first: bool = False,
) -> Assignment:
    """Returns the map of one step; see :func:`tokengraph.diffrate`."""
    merge, prune = clamp_budget(merge, x, mask), clamp_budget(prune, x, mask)
    if isinstance(merge, int) and isinstance(prune, int) and mask is None and score.numel() and may_write(score):
        return _equal(score, x, max(prune, merge), merge, size, official, similar_first)
    if isinstance(merge, list) or isinstance(prune, list):
        counts = valid_counts(x, mask)
        merge, prune = (k if isinstance(k, list) else [k] * len(counts) for k in (merge, prune))
        prune = [max(p, m) for p, m in zip(prune, merge, strict=True)]
        most_m, most_p, least_m = max(merge, default=0), max(prune, default=0), min(merge, default=0)
        drops = any(p < n for p, n in zip(prune, counts, strict=True))
        pure = prune == merge
    else:
        prune = max(prune, merge)
        most_m, most_p, least_m = merge, prune, merge
        drops, pure = prune < x.size(1), prune == merge
    order, rank = ranks(score, mask)
    pairs = all_cosines(x) if similar_first and not pure and x.size(1) else None
    if pairs is not None:
        order, rank = ranks_by_similarity(rank, pairs, prune)
    kept = below(rank, merge)
    number = torch.where(kept, kept.cumsum(dim=1) - 1, -1)
    centers = (~kept).argsort(dim=1, stable=True)[:, :most_m]
    if pure:
        return Assignment.from_dense(number, merge, mask=mask, drops=drops, centers=centers, single=True)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        targets, sources = order[:, :most_m], order[:, least_m:most_p]
        if pairs is None:
            edges = _between(x, sources, targets)
        else:
            edges = _columns(take_rows(pairs, sources), targets)
        if isinstance(merge, list):
            there = below(torch.arange(most_m, device=x.device).expand_as(targets), merge)
            edges = edges.masked_fill(~there[:, None], -torch.inf)
        best, to = edges.max(dim=2)
        to = edges.argmax(dim=2)  # the first of equals
        joins = number.gather(1, targets.gather(1, to))
        mass = torch.ones_like(score, dtype=torch.float32) if size is None else as_type(size, torch.float32)
        adds = mass.gather(1, sources) * (best if official else best.clamp_min(0))
        if isinstance(merge, list) and isinstance(prune, list):
            place = torch.arange(least_m, most_p, device=x.device).expand_as(sources)
            real = below(place, prune) & ~below(place, merge)
            joins = torch.where(real, joins, number.gather(1, sources))
            adds = torch.where(real, adds, mass.gather(1, sources))
        number, mass = number.scatter(1, sources, joins), mass.scatter(1, sources, adds)
    one = torch.ones_like(mass)
    return Assignment.from_dense(number, merge, mask=mask, drops=True, centers=centers, weight=one, mass=mass)


def _equal(
    score: Tensor, x: Tensor, prune: int, merge: int, size: Tensor | None, official: bool, similar_first: bool
) -> Assignment:
    """:func:`prune_and_merge` where all images keep as many tokens: the map is made from the kept ones."""
    images, tokens, total = *score.shape, score.size(0) * merge
    order = score.detach().argsort(dim=1, descending=True, stable=True)
    if similar_first and prune > merge:
        order = _order_by_similarity(x, order[:, :prune])
    place = order + starts(images, tokens, x.device)
    centers, number = place[:, :merge].sort(dim=1)[0].flatten(), counting(total, x.device)
    cluster = torch.full((images * tokens,), total, dtype=torch.long, device=x.device).scatter_(0, centers, number)
    ptr, ends = (equal_ptr(images, n, x.device) for n in (tokens, merge))
    if prune == merge:
        return Assignment(cluster, total, merge < tokens, ptr, ends, centers, single=True)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        edges = _between(x, order[:, merge:prune], order[:, :merge])
        best, to = edges.max(dim=2)  # the first of equals
        joins = place[:, merge:prune].flatten()
        cluster.index_copy_(0, joins, cluster.index_select(0, place.gather(1, to).flatten()))
        adds, one = best if official else best.clamp_min(0), ones(images * tokens, x.device)
        mass = one if size is None else as_type(size, torch.float32).flatten()
        adds = adds.flatten() if size is None else adds.flatten() * mass.index_select(0, joins)
        mass = mass.index_copy(0, joins, adds)
    return Assignment(cluster, total, True, ptr, ends, centers, weight=one, mass=mass)


def merge_in_place(
    x: Tensor, size: Tensor, rank: Tensor, merge: Tensor, until: Tensor, official: bool
) -> tuple[Tensor, Tensor]:
    """The merging half of a step in training: targets take their sources in, and every token keeps its place.

    Args:
        x: ``[B, N, C]``.
        size: ``[B, N]``.
        rank: Place of each patch token, from 1, the best, on.
        merge: Tokens that stay, the class token counted; ``[B, 1]`` or 0-dim.
        until: Tokens that did not drop: places from ``merge`` to it are sources.
        official: Sizes in front of ``until`` are at least 1, and negative similarities count.

    Returns:
        Rows and sizes; those of tokens other than targets are as they were.

    Cost: ``O(B N^2 C)``, one ``[B, N, N]`` matrix.
    """
    target, source = rank < merge, (rank >= merge) & (rank < until)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        unit = unit_rows(x)
        edges = cosines(unit, unit, target)
        best, to = edges.max(dim=2)
        own = rank.masked_fill(~target, rank.size(1) + 1)
        tied = torch.where(edges == best[..., None], own[:, None], rank.size(1) + 2)
        to = tied.argmin(dim=2)  # the best-ranked of equals
        share = F.one_hot(to, x.size(1)).to(size.dtype) * (source & (best > -torch.inf)).to(size.dtype)[..., None]
        share = share.transpose(1, 2)  # [B, target, source]
        grown = size * torch.where(source, best if official else best.clamp_min(0), 1.0)
        if official:
            grown = torch.where(rank < until, grown.clamp_min(1), grown)
        added = torch.matmul(share, grown[..., None])[..., 0]
        new = torch.where(target, (grown if official else size) + added, size)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mixed = (wide + torch.matmul(share.to(wide.dtype), wide)) / (1 + share.sum(dim=2, keepdim=True))
    return torch.where(target[..., None], mixed, wide).to(x.dtype), new
