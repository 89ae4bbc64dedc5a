"""Coarsens a token graph: once, or level by level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.edges.grid import Grid
from tokengraph.errors import check_finite, check_kind, check_sorted
from tokengraph.graph.as_tokens import tokens_of
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explains
from tokengraph.maps.counts import with_ptr
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import Edges, SoftAssignment
from tokengraph.schedule import tokens_to_keep
from tokengraph.select.base import Select, resolve
from tokengraph.select.from_pyg import FromPyG


class Coarsening(NamedTuple):
    """The result of :func:`coarsen`: the coarse graph, and the map from the tokens of the fine graph to its nodes."""

    graph: TokenGraph
    assignment: Assignment | SoftAssignment


@explains
def coarsen(
    graph: TokenGraph,
    select: str | type[Select] | Select,
    keep: int | float | list[int | float] | tuple[int | float, ...],
    *,
    clamp: bool = False,
) -> Coarsening:
    """Coarsens every image of a token graph to ``keep`` tokens.

    Args:
        graph: Tokens of one image or of many, which may differ in size.
        select: A strategy by name, class or instance. Strategies that need attention need a model: use ``attach``.
        keep: Tokens per image (int), or a share of each image's tokens (float in (0, 1]); clamped to the tokens that
            an image has. A list has one for each image.
        clamp: If ``keep`` is below what one step of the strategy can reach (``select.fewest``; half for ToMe), keep
            the fewest possible instead of raising.

    Returns:
        The coarse graph and the map, whose ``lift`` expands rows again. Features and positions are averages weighted by
        size, sizes are sums, and edge weights are sums over all edges between two clusters; self loops are left out.

    Raises:
        ValueError: If ``keep`` is out of range, below what one step can reach or a list of another length, tokens are
            not finite, or the strategy does not support the graph.

    Cost: the strategy's, one reduction, and a sort of the edges if there are any. Images of equal size run in one
    batch.

    Example:
        >>> graph = TokenGraph.from_tokens(torch.randn(2, 16, 8), grid=(4, 4))
        >>> coarse, assignment = coarsen(graph, "dpc-knn", 5)
        >>> coarse.counts, assignment.lift(coarse.x).shape
        ([5, 5], torch.Size([32, 8]))
    """
    check_kind(graph, TokenGraph, "graph")
    select = resolve(select)
    if graph.batch is not None:
        check_sorted(graph.batch)
    check_finite(graph.x)
    counts = graph.counts
    each = list(keep) if isinstance(keep, list | tuple) else [keep] * len(counts)
    if len(each) != len(counts):
        raise ValueError(f"Expected one budget an image, B={len(counts)} (got {len(each)}).")
    budgets = [tokens_to_keep(k, n or 1) * bool(n) for k, n in zip(each, counts, strict=True)]
    if not clamp:
        _check_reach(select, counts, budgets)
    assignment = assign(graph, select, counts, budgets)
    return Coarsening(apply(graph, assignment, reduction=select.reduction_at(-1)), assignment)


def _check_reach(select: Select, counts: list[int], budgets: list[int]) -> None:
    """Raises if one step of the strategy cannot reach as few tokens as the budgets ask for."""
    for count, budget in zip(counts, budgets, strict=True):
        if budget < (fewest := select.fewest(count)):
            raise ValueError(
                f"Expected keep >= {fewest} of {count} tokens for {type(select).__name__}, which cannot remove more in "
                f"one step (got keep={budget}). Go step by step: hierarchy(graph, select, [0.5, 0.5]); or take the "
                "fewest that one step can leave: clamp=True."
            )


@explains
def apply(graph: TokenGraph, assignment: Assignment | SoftAssignment, *, reduction: str = "mean") -> TokenGraph:
    """Coarsens a graph by a given map; :func:`coarsen` describes the fields of the result.

    Args:
        graph: The fine graph, M tokens.
        assignment: A map over these M tokens.
        reduction: Reduction of the features, as in the map's ``reduce``.

    Returns:
        The coarse graph. It keeps fields of the whole graph, and drops other fields of nodes and edges.

    Cost: one reduction, and a sort of the edges if there are any.
    """
    if isinstance(assignment, Assignment):
        x, size = assignment.reduce(graph.x, graph.size, reduce=reduction)
    else:
        x, size = assignment.reduce(graph.x, graph.size)
    # Other fields of nodes and edges do not fit the coarse graph.
    others = set(graph.keys()) - {"x", "size", "pos", "batch", "ptr", "grid", "prefix"}
    coarse = graph.without(*(k for k in others if graph.is_edge_attr(k) or graph.is_node_attr(k)))
    coarse.x, coarse.size = x, size
    if "pos" in graph:
        coarse.pos = assignment.by_size().reduce(graph.pos, graph.size)[0]
    assert assignment.cluster_ptr is not None  # every strategy says where an image's clusters begin
    coarse.ptr = assignment.cluster_ptr
    image = torch.arange(graph.num_images, device=x.device)
    coarse.batch = torch.repeat_interleave(image, coarse.ptr.diff(), output_size=x.size(0))
    if "edge_index" in graph and graph.edge_index is not None:
        coarse.edge_index, coarse.edge_weight = assignment.connect(graph.edge_index, graph.edge_weight, loops=False)
    return coarse


@dataclass(frozen=True)
class Hierarchy:
    """Graphs from fine to coarse: ``graphs[0]`` is the input, ``assignments[i]`` maps ``graphs[i]`` to the next."""

    graphs: list[TokenGraph]
    assignments: list[Assignment | SoftAssignment]

    def between(self, level: int, to: int = 0) -> Assignment | SoftAssignment:
        """Composes one map from the tokens of ``graphs[to]`` to those of ``graphs[level]``.

        Raises:
            ValueError: Unless ``0 <= to < level < len(graphs)``.
        """
        level = level + len(self.graphs) if level < 0 else level
        if not 0 <= to < level < len(self.graphs):
            raise ValueError(f"Expected 0 <= to < level < {len(self.graphs)} (got level={level}, to={to}).")
        composed = self.assignments[to]
        for assignment in self.assignments[to + 1 : level]:
            composed = composed.then(assignment)
        return composed

    def lift(self, y: Tensor, level: int = -1, to: int = 0) -> Tensor:
        """Expands rows ``[K, C]`` of ``graphs[level]`` to rows ``[M, C]`` of the tokens of ``graphs[to]``."""
        return self.between(level, to).lift(y)


@explains
def hierarchy(
    graph: TokenGraph, select: str | type[Select] | Select, schedule: Sequence[int | float], *, clamp: bool = False
) -> Hierarchy:
    """Coarsens a graph level by level.

    Args:
        graph: The finest graph.
        select: A strategy by name, class or instance.
        schedule: The budget of each level: tokens per image (int), or a share of the level before (float in (0, 1]).
        clamp: As for :func:`coarsen`.

    Returns:
        All graphs and maps.

    Raises:
        ValueError: As for :func:`coarsen`, at any level.

    Cost: one :func:`coarsen` for each level.

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


def assign(graph: TokenGraph, select: Select, counts: list[int], budgets: list[int]) -> Assignment | SoftAssignment:
    """Runs the strategy on each group of images of equal size and grid, and joins the maps in the images' order."""
    if isinstance(select, FromPyG):  # takes flat nodes as they are
        edges = None if graph.edge_index is None else (graph.edge_index, graph.edge_weight)
        return select.on_flat(graph.x, counts, budgets, edges)
    grids = graph.grids or [None] * len(counts)
    groups: dict[tuple[int, int, Grid | None], list[int]] = {}
    for b, key in enumerate(zip(counts, budgets, grids, strict=True)):
        groups.setdefault(key, []).append(b)
    parts = []
    for (count, budget, grid), images in groups.items():
        if not count:
            continue
        rows = torch.cat([torch.arange(s, s + count) for s in graph.ptr[images].tolist()]).to(graph.x.device)
        chosen = select(tokens_of(graph, rows, len(images), grid), budget)
        parts.append((images, rows, with_ptr(chosen, len(images))))
    if len(parts) == 1 and len(parts[0][0]) == len(counts):
        return parts[0][2]
    return _lay_together(parts, graph)


def _lay_together(
    parts: list[tuple[list[int], Tensor, Assignment | SoftAssignment]], graph: TokenGraph
) -> Assignment | SoftAssignment:
    """Joins maps over groups of images to one map for the whole batch."""
    device = graph.x.device
    kept = torch.zeros(graph.num_images, dtype=torch.long, device=device)
    for images, _, part in parts:
        assert part.cluster_ptr is not None
        kept[images] = part.cluster_ptr.diff()
    cluster_ptr = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    each = tuple(kept.tolist())
    total, counts = sum(each), each if len(set(each)) > 1 else None
    homes = []  # for each part: the batch-wide number of each of its clusters
    for images, _, part in parts:
        size = part.cluster_ptr.diff()  # type: ignore[union-attr]
        shift = torch.repeat_interleave(cluster_ptr[images] - part.cluster_ptr[:-1], size)  # type: ignore[index]
        homes.append(torch.arange(part.num_clusters, device=device) + shift)
    rows, maps = [r for _, r, _ in parts], [p for *_, p in parts]
    centers = _by_cluster([None if p.centers is None else r[p.centers] for r, p in zip(rows, maps, strict=True)], homes)
    if any(p.steps for p in maps):
        raise ValueError(
            "Expected maps that reduce in one step (got a composition with weights of its own, for images of different "
            "numbers of tokens). Coarsen step by step: hierarchy(graph, select, [0.5, 0.5])."
        )
    mass = _by_token([p.mass for p in maps], rows, graph.size)
    hard = [p for p in maps if isinstance(p, Assignment)]
    if len(hard) == len(maps):
        cluster = torch.full((graph.x.size(0),), total, device=device)
        for row, part, home in zip(rows, hard, homes, strict=True):
            cluster[row] = torch.cat([home, home.new_full((1,), total)])[part.cluster]
        drops, single = any(p.drops for p in hard), centers is not None and all(p.single for p in hard)
        weight = _by_token([p.weight for p in hard], rows, graph.size)
        return Assignment(cluster, total, drops, graph.ptr, cluster_ptr, centers, single, counts, weight, mass)
    soft = tuple(SoftAssignment.from_hard(p) if isinstance(p, Assignment) else p for p in maps)
    if len({s.normalize for s in soft}) > 1:
        raise ValueError("Expected every image's map to average, or every one to add up (got a mixture).")
    return SoftAssignment(
        *_joined([(s.token, s.cluster, s.weight) for s in soft], rows, homes),
        graph.x.size(0),
        total,
        soft[0].normalize,
        _JoinedEdges(soft, tuple(rows), tuple(homes)) if any(s.up is not None for s in soft) else None,
        graph.ptr,
        cluster_ptr,
        centers,
        _by_cluster([s.centroids for s in soft], homes),
        all(s.lossless for s in soft),
        counts,
        mass,
    )


@dataclass(frozen=True, eq=False)
class _JoinedEdges:
    """Computes the joined lift edges when a lift needs them. A class, not a closure, so that maps can be pickled."""

    parts: tuple[SoftAssignment, ...]
    rows: tuple[Tensor, ...]
    homes: tuple[Tensor, ...]

    def __call__(self) -> Edges:
        return _joined([part.way_back() for part in self.parts], self.rows, self.homes)


def _joined(edges: Sequence[Edges], rows: Sequence[Tensor], homes: Sequence[Tensor]) -> Edges:
    """Joins the edges of groups of images, with flat ids of the batch."""
    each = [(row[e[0]], home[e[1]], e[2]) for e, row, home in zip(edges, rows, homes, strict=True)]
    token, cluster, weight = (torch.cat(part) for part in zip(*each, strict=True))
    return token, cluster, weight


def _by_token(values: Sequence[Tensor | None], rows: Sequence[Tensor], size: Tensor) -> Tensor | None:
    """Weights or masses of each group's tokens in the order of the batch, sizes where a group has none."""
    if all(value is None for value in values):
        return None
    known = [size[row] if value is None else value for value, row in zip(values, rows, strict=True)]
    return torch.cat(known)[torch.cat(list(rows)).argsort()]


def _by_cluster(values: Sequence[Tensor | None], homes: Sequence[Tensor]) -> Tensor | None:
    """Joins the cluster rows of all groups in the order of the batch; ``None`` if a group has none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return torch.cat(known)[torch.cat(list(homes)).argsort()]
