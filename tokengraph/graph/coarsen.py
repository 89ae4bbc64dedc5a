"""Coarsening a token graph: once, or level by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.errors import check_finite, check_sorted
from tokengraph.graph.fields import Grid
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select, resolve, tokens_to_keep
from tokengraph.select.tokens import Tokens


class Coarsening(NamedTuple):
    """A coarse graph, and the map from the fine graph's tokens to it."""

    graph: TokenGraph
    assignment: Assignment | SoftAssignment


def coarsen(
    graph: TokenGraph, select: str | type[Select] | Select, keep: int | float, *, clamp: bool = False
) -> Coarsening:
    """Coarsens every image of a token graph to ``keep`` tokens.

    Args:
        graph: Tokens of one image or many, also ragged.
        select: A strategy by name, class or instance. Strategies that need attention need a model: use ``attach``.
        keep: Tokens an image (int), or a share of each image's tokens (float in (0, 1]); at most what there is.
        clamp: Leave as few as one step of the strategy can (``select.fewest``; half for ToMe) where ``keep`` asks for
            fewer, instead of raising as ``attach`` does.

    Returns:
        The coarse graph (features and positions averaged by size, sizes added up, edges and their weights summed
        between clusters, loops left out) and the map, whose ``lift`` brings rows back.

    Raises:
        ValueError: If ``keep`` is out of range, or fewer than one step can leave; if tokens are not finite, or the
            strategy cannot serve the graph.

    Cost: the strategy's, one reduction, and a sort of the edges if there are any. Images of equal size go together.

    Example:
        >>> graph = TokenGraph.from_tokens(torch.randn(2, 16, 8), grid=(4, 4))
        >>> coarse, assignment = coarsen(graph, "dpc-knn", 5)
        >>> coarse.counts, assignment.lift(coarse.x).shape
        ([5, 5], torch.Size([32, 8]))
    """
    select = resolve(select)
    if graph.batch is not None:
        check_sorted(graph.batch)
    check_finite(graph.x)
    counts = graph.counts
    budgets = [tokens_to_keep(keep, n) if n else 0 for n in counts]
    if not any(counts):
        tokens_to_keep(keep, 1)
    if not clamp:
        _check_reach(select, counts, budgets)
    assignment = _assign(graph, select, counts, budgets)
    return Coarsening(apply(graph, assignment, reduction=select.reduction), assignment)


def _check_reach(select: Select, counts: list[int], budgets: list[int]) -> None:
    """Raises where one step of the strategy cannot leave as few tokens as are asked for."""
    for count, budget in zip(counts, budgets, strict=True):
        if budget < (fewest := select.fewest(count)):
            raise ValueError(
                f"Expected keep >= {fewest} of {count} tokens for {type(select).__name__}, which cannot remove more in "
                f"one step (got keep={budget}). Go step by step: hierarchy(graph, select, [0.5, 0.5]); or take the "
                "fewest that one step can leave: clamp=True."
            )


def apply(graph: TokenGraph, assignment: Assignment | SoftAssignment, *, reduction: str = "mean") -> TokenGraph:
    """The coarse graph that a map makes of a graph; fields as :func:`coarsen` says."""
    if isinstance(assignment, Assignment):
        x, size = assignment.reduce(graph.x, graph.size, reduce=reduction)
        where = assignment
    else:
        x, size = assignment.reduce(graph.x, graph.size)
        where = replace(assignment, normalize=True)
    # What else stands at nodes or edges does not fit the coarse graph; what stands at the graph does.
    others = set(graph.keys()) - {"x", "size", "pos", "batch", "ptr", "grid", "prefix"}
    coarse = graph.without(*(k for k in others if graph.is_edge_attr(k) or graph.is_node_attr(k)))
    coarse.x, coarse.size = x, size
    if "pos" in graph:
        coarse.pos = where.reduce(graph.pos, graph.size)[0]
    assert assignment.cluster_ptr is not None  # every strategy says where an image's clusters begin
    coarse.ptr = assignment.cluster_ptr
    image = torch.arange(graph.num_images, device=x.device)
    coarse.batch = torch.repeat_interleave(image, coarse.ptr.diff(), output_size=x.size(0))
    if "edge_index" in graph and graph.edge_index is not None:
        coarse.edge_index, coarse.edge_weight = assignment.connect(graph.edge_index, graph.edge_weight, loops=False)
    return coarse


@dataclass(frozen=True)
class Hierarchy:
    """Ever coarser graphs. ``graphs[0]`` is the input; ``assignments[i]`` maps ``graphs[i]`` to ``graphs[i + 1]``."""

    graphs: list[TokenGraph]
    assignments: list[Assignment | SoftAssignment]

    def between(self, level: int, to: int = 0) -> Assignment | SoftAssignment:
        """One map from the tokens of ``graphs[to]`` to those of ``graphs[level]``, ``to < level``."""
        level = level + len(self.graphs) if level < 0 else level
        if not 0 <= to < level < len(self.graphs):
            raise ValueError(f"Expected 0 <= to < level < {len(self.graphs)} (got level={level}, to={to}).")
        composed = self.assignments[to]
        for assignment in self.assignments[to + 1 : level]:
            composed = composed.then(assignment)
        return composed

    def lift(self, y: Tensor, level: int = -1, to: int = 0) -> Tensor:
        """Brings rows ``[K, C]`` of ``graphs[level]`` back to the tokens of ``graphs[to]``."""
        return self.between(level, to).lift(y)


def hierarchy(
    graph: TokenGraph, select: str | type[Select] | Select, schedule: Sequence[int | float], *, clamp: bool = False
) -> Hierarchy:
    """Coarsens level by level.

    Args:
        graph: The finest graph.
        select: A strategy by name, class or instance.
        schedule: What each level keeps: tokens an image (int), or a share of the level before (float in (0, 1]).
        clamp: As for :func:`coarsen`.

    Returns:
        All graphs and maps.

    Example:
        >>> graph = TokenGraph.from_tokens(torch.randn(1, 64, 8), grid=(8, 8))
        >>> [g.num_nodes for g in hierarchy(graph, "dpc-knn", [0.5, 0.5, 4]).graphs]
        [64, 32, 16, 4]
    """
    select = resolve(select)
    graphs, assignments = [graph], []
    for keep in schedule:
        coarse, assignment = coarsen(graphs[-1], select, keep, clamp=clamp)
        graphs.append(coarse)
        assignments.append(assignment)
    return Hierarchy(graphs, assignments)


def _assign(graph: TokenGraph, select: Select, counts: list[int], budgets: list[int]) -> Assignment | SoftAssignment:
    """Runs the strategy on each group of alike images, and lays the maps together in the order of the images."""
    grids = graph.grids or [None] * len(counts)
    groups: dict[tuple[int, int, Grid | None], list[int]] = {}
    for b, key in enumerate(zip(counts, budgets, grids, strict=True)):
        groups.setdefault(key, []).append(b)
    parts = []
    for (count, budget, grid), images in groups.items():
        if not count:
            continue
        rows = torch.cat([torch.arange(s, s + count) for s in graph.ptr[images].tolist()]).to(graph.x.device)
        parts.append((images, rows, select(_tokens(graph, rows, len(images), grid), budget)))
    if len(parts) == 1 and len(parts[0][0]) == len(counts):
        return parts[0][2]
    return _lay_together(parts, graph)


def _tokens(graph: TokenGraph, rows: Tensor, images: int, grid: Grid | None) -> Tokens:
    whole = rows.numel() == graph.x.size(0)
    x, size = (f if whole else f[rows] for f in (graph.x, graph.size))
    tokens = Tokens(x.view(images, -1, x.size(1)), size.view(images, -1), grid, full=False)
    if grid is not None:
        tokens.full = grid[0] * grid[1] == tokens.x.size(1)
        tokens.locate = lambda: graph.pos[rows].view(images, -1, 2)
    return tokens


def _lay_together(
    parts: list[tuple[list[int], Tensor, Assignment | SoftAssignment]], graph: TokenGraph
) -> Assignment | SoftAssignment:
    """One map for the whole batch out of maps over groups of its images."""
    device = graph.x.device
    kept = torch.zeros(graph.num_images, dtype=torch.long, device=device)
    for images, _, part in parts:
        assert part.cluster_ptr is not None
        kept[images] = part.cluster_ptr.diff()
    cluster_ptr = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    total = int(cluster_ptr[-1])
    homes = []  # for each part: the batch-wide number of each of its clusters
    for images, _, part in parts:
        size = part.cluster_ptr.diff()  # type: ignore[union-attr]
        shift = torch.repeat_interleave(cluster_ptr[images] - part.cluster_ptr[:-1], size)  # type: ignore[index]
        homes.append(torch.arange(part.num_clusters, device=device) + shift)
    if all(isinstance(part, Assignment) for _, _, part in parts):
        cluster = torch.full((graph.x.size(0),), total, device=device)
        centers = torch.zeros(total, dtype=torch.long, device=device)
        for (_, rows, part), home in zip(parts, homes, strict=True):
            cluster[rows] = torch.cat([home, home.new_full((1,), total)])[part.cluster]
            if part.centers is not None:  # type: ignore[union-attr]
                centers[home] = rows[part.centers]  # type: ignore[union-attr]
        drops = any(part.drops for _, _, part in parts)  # type: ignore[union-attr]
        known = bool(parts) and all(part.centers is not None for _, _, part in parts)  # type: ignore[union-attr]
        return Assignment(cluster, total, drops, graph.ptr, cluster_ptr, centers if known else None)
    soft = [SoftAssignment.from_hard(p) if isinstance(p, Assignment) else p for _, _, p in parts]
    rows = [r for _, r, _ in parts]
    down = zip(soft, rows, homes, strict=True)
    edges = [(r[s.token], h[s.cluster], s.weight) for s, r, h in down]
    if len({s.normalize for s in soft}) > 1:
        raise ValueError("Expected every image's map to average, or every one to add up (got a mixture).")
    token, cluster, weight = (torch.cat(e) for e in zip(*edges, strict=True))
    back = None
    if any(s.up is not None for s in soft):
        ways = ((r, h, s.way_back()) for s, r, h in zip(soft, rows, homes, strict=True))
        up = [(r[u[0]], h[u[1]], u[2]) for r, h, u in ways]
        back = tuple(torch.cat(e) for e in zip(*up, strict=True))
    return SoftAssignment(
        token,
        cluster,
        weight,
        graph.x.size(0),
        total,
        soft[0].normalize,
        back,  # type: ignore[arg-type]
        graph.ptr,
        cluster_ptr,
        lossless=all(s.lossless for s in soft),
    )
