"""The pieces that :func:`tokengraph.compose` puts together, by name: scores, and choices on graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.atc import _atc
from tokengraph.select.g2tm import _connected
from tokengraph.select.grid_tome import _grid_destinations
from tokengraph.select.k_medoids import _k_medoids
from tokengraph.select.mctf import _mctf
from tokengraph.select.mpm import _mpm
from tokengraph.select.parts.choices.best import among_best, keep_best
from tokengraph.select.parts.choices.edges import count_merges, merge_halves
from tokengraph.select.parts.choices.ranked import merge_ranked
from tokengraph.select.parts.choices.receivers import with_receivers
from tokengraph.select.parts.choices.roots import all_single
from tokengraph.select.parts.reductions.fuse import keep_and_fuse
from tokengraph.select.parts.scores.energy import energy
from tokengraph.select.parts.scores.norm import feature_norm
from tokengraph.select.parts.scores.random import random_score
from tokengraph.select.parts.scores.received import received
from tokengraph.select.peaks.dpc_knn import _dpc_knn
from tokengraph.select.tokens import Tokens, clamp_budget
from tokengraph.select.toma import _toma, to_centers

Map = Assignment | SoftAssignment
POOLS = ("mean", "weighted", "max", "absmax", "mlerp", "center")


@dataclass(frozen=True)
class Seen:
    """What a choice gets: the tokens, what similarity is measured on ``[B, N, D]``, the score ``[B, N]``, a number.

    Args:
        tokens: The tokens.
        metric: Features or keys.
        score: How much tokens matter; ``None``: no score.
        knob: The choice's own number, such as a threshold.
        reduce: The reduction's name, for choices whose map depends on it.
    """

    tokens: Tokens
    metric: Tensor
    score: Tensor | None
    knob: float
    reduce: str


Chooser = Callable[[Seen, int | list[int]], Map]


@dataclass(frozen=True)
class Piece:
    """A choice of :func:`tokengraph.compose`.

    Args:
        make: Makes the map.
        graphs: Graphs that it works on; the first is the default. ``"none"``: it merges nothing.
        score: ``"no"``: it reads none; ``"yes"``: it needs one; or the graph with which it does.
        reduces: Reductions of its clusters; the first is the default.
        knob: The default of its own number, and what that is.
        centers: Whether it says which token stands for a cluster, without a score.
        ragged: Whether images keep different numbers.
        half: Whether one step leaves half of the tokens.
    """

    make: Chooser
    graphs: tuple[str, ...]
    score: str = "no"
    reduces: tuple[str, ...] = POOLS
    knob: tuple[float, str] | None = None
    centers: bool = False
    ragged: bool = False
    half: bool = False


def _alternating(seen: Seen, budget: int | list[int]) -> Map:
    made = merge_halves(seen.metric, budget, seen.tokens.num_prefix, seen.tokens.mask)
    if seen.reduce == "center" and seen.score is None:  # by a score, its best member stands for a cluster
        return with_receivers(made, seen.tokens.num_prefix % 2, seen.tokens.mask)
    return made


def _ranked(seen: Seen, budget: int | list[int]) -> Map:
    """Halves by alternate ranks, the tokens of least score first."""
    metric, mask = seen.metric, seen.tokens.mask
    assert seen.score is not None
    lost, kept = count_merges(metric, budget, 0, mask)
    if metric.size(0) == 0 or not (max(lost, default=0) if isinstance(lost, list) else lost):
        return all_single(metric, kept, mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        score = seen.score.float() if mask is None else seen.score.float().masked_fill(~mask, torch.inf)
        number = merge_ranked(metric, score.argsort(dim=1, stable=True), lost, mask, "bsm")
        if isinstance(lost, list):
            same = torch.arange(metric.size(1), device=metric.device) if mask is None else mask.long().cumsum(1) - 1
            number = torch.where(torch.tensor(lost, device=number.device)[:, None] == 0, same, number)
        return Assignment.from_dense(number, kept, mask=mask)


def _cells(seen: Seen, budget: int | list[int]) -> Map:
    grid, keep = _grid(seen), clamp_budget(budget, seen.metric, None)
    if isinstance(keep, list):
        raise ValueError(f"Expected one budget for all images of a batch (got {keep}). Go image by image.")
    return _grid_destinations(seen.metric, grid, keep, (2, 2), None)


def _edges(seen: Seen, budget: int | list[int], graph: str) -> Map:
    return {"alternating": _alternating, "ranked": _ranked, "cells": _cells}[graph](seen, budget)


def _both_ways(seen: Seen, budget: int | list[int]) -> Map:
    ones, tokens = torch.ones_like(seen.metric[..., 0], dtype=torch.float32), seen.tokens
    made = _mctf(seen.metric, ones, budget, None, (1.0, 0.0, 0.0), True, tokens.num_prefix, tokens.mask)
    return replace(made, weight=None)


def _components(seen: Seen, budget: int | list[int]) -> Map:
    return _connected(seen.metric, _grid(seen), seen.knob, budget)


def _around_best(seen: Seen, budget: int | list[int]) -> Map:
    """The best tokens by score, and to each the tokens that resemble it most."""
    metric, mask = seen.metric, seen.tokens.mask
    assert seen.score is not None
    keep = clamp_budget(budget, metric, mask)
    if metric.size(0) == 0 or (isinstance(keep, int) and keep >= metric.size(1)):
        return all_single(metric, keep, mask)
    with torch.autocast(metric.device.type, enabled=False):
        kept = among_best(seen.score, keep, mask)
        most = max(keep, default=0) if isinstance(keep, list) else keep
        centers = (~kept).long().argsort(dim=1, stable=True)[:, :most]
        return to_centers(metric, centers, keep, seen.knob if seen.reduce == "soft" else torch.inf, mask)


def _facility(seen: Seen, budget: int | list[int]) -> Map:
    scale = seen.knob if seen.reduce == "soft" else torch.inf
    return _toma(seen.metric, budget, scale, None, None, seen.tokens.mask)


def _best(seen: Seen, budget: int | list[int]) -> Map:
    assert seen.score is not None
    if seen.reduce == "fuse":
        return keep_and_fuse(seen.score, budget, seen.tokens.mask, average=True)
    return keep_best(seen.score, budget, seen.tokens.mask)


def _grid(seen: Seen) -> tuple[int, int]:
    grid = seen.tokens.grid
    if grid is None or len(grid) != 2 or not seen.tokens.full:
        raise ValueError(
            f"Expected the full grid (H, W) for a graph on the grid (got {seen.metric.size(1)} tokens"
            f"{'' if grid is None else f' of a grid {grid}'}). It acts once, before anything else removes tokens."
        )
    return grid


SOFT = (10.0, "factor on cosines before the softmax of 'soft'")
CHOICES = {
    "top-edges": Piece(_alternating, ("alternating", "ranked", "cells"), "ranked", half=True),
    "both-ways": Piece(_both_ways, ("alternating",), half=True),
    "mutual-pairs": Piece(lambda s, k: _mpm(s.metric, k, s.tokens.mask), ("complete",), ragged=True, half=True),
    "components": Piece(_components, ("grid",), knob=(0.88, "cosine above which neighbours merge"), ragged=True),
    "agglomerate": Piece(lambda s, k: _atc(s.metric, k, "average", s.tokens.mask), ("complete",)),
    "medoids": Piece(
        lambda s, k: _k_medoids(s.metric, k, s.score, 3, "cluster", s.tokens.mask), ("complete",), "may", centers=True
    ),
    "peaks": Piece(
        lambda s, k: _dpc_knn(s.metric, k, int(s.knob), s.tokens.mask, True, None, "index"),
        ("complete",),
        knob=(5, "neighbours of a density"),
        centers=True,
    ),
    "facility": Piece(_facility, ("complete",), reduces=(*POOLS, "soft"), knob=SOFT, centers=True),
    "around-best": Piece(_around_best, ("complete",), "yes", (*POOLS, "soft"), SOFT, centers=True),
    "top-k": Piece(_best, ("none",), "yes", ("drop", "fuse")),
}
SCORES: dict[str, tuple[str, Callable[[Tokens, Tensor], Tensor]]] = {  # what it reads of attention, and how
    "class": ("class", lambda tokens, metric: tokens.class_attention()),
    "received": ("keys", lambda tokens, metric: received(_attention(tokens))),
    "norm": ("nothing", lambda tokens, metric: feature_norm(tokens.x)),
    "distinct": ("nothing", lambda tokens, metric: -energy(metric, margin=0.75, mask=tokens.mask)),
    "random": ("nothing", lambda tokens, metric: _random(tokens)),
}


def edges_of(graph: str) -> Chooser:
    """The heaviest edges of a bipartite graph, by its name."""
    return lambda seen, budget: _edges(seen, budget, graph)


def _attention(tokens: Tokens) -> AttentionStats:
    if tokens.attention is None:
        raise ValueError("Expected tokens with attention (got tokens outside a model's block). Use score='norm'.")
    return tokens.attention


def _random(tokens: Tokens) -> Tensor:
    score = random_score(tokens.x.size(1), 1000003 * (tokens.layer + 1), device=tokens.x.device)
    return score.expand(tokens.x.shape[:2])
