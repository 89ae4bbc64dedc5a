"""Partitions of a token graph whose number of clusters the graph decides."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.errors import check_finite, check_kind, check_sorted
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.coarsening.methods import Linked
from tokengraph.select.coarsening.operator import linked_by
from tokengraph.select.parts.choices.contraction import Level, contract, matching
from tokengraph.select.parts.choices.independent import independent_centers
from tokengraph.select.parts.graphs.components import components, components_left
from tokengraph.select.parts.graphs.pairs import WEIGHTS
from tokengraph.select.parts.scores.merges import modularity_gain

RANKS = ("index", "degree")


def linked(graph: TokenGraph, weight: str, *, least: float = 0.0) -> Linked:
    """Returns a graph's tokens with its edges as pairs, weighed as in the strategies on edges.

    Raises:
        ValueError: If the graph has no edges, edges between images, tokens that are not finite, or for another weight.
    """
    check_kind(graph, TokenGraph, "graph")
    if weight not in WEIGHTS:
        raise ValueError(f"Expected weight to be one of {', '.join(WEIGHTS)} (got {weight!r}).")
    if graph.edge_index is None:
        raise ValueError("Expected a graph with edges (got none). Add them: graph.connect_knn(8), connect_grid().")
    if graph.batch is not None:
        check_sorted(graph.batch)
    check_finite(graph.x)
    size = graph["size"] if "size" in graph else None
    return linked_by((graph.edge_index, graph.edge_weight), graph.x, size, graph.ptr, weight, least=least)


@explains
def threshold_components(
    graph: TokenGraph, tau: float, keep: int | list[int] = 1, *, weight: str = "cosine"
) -> Assignment:
    r"""Merges the connected components of the edges heavier than a threshold.

    Args:
        graph: Any token graph with edges.
        tau: Edges of :math:`w_{ij} > \tau` count, strictly.
        keep: The fewest clusters of each image, one number or a list; the lightest edges are then left out.
        weight: Weight of an edge: ``"cosine"``, ``"given"`` (a similarity), ``"distance"`` or ``"one"``; see
            :class:`tokengraph.HeavyEdges`. Here they may be negative.

    Returns:
        The map over the graph's tokens. Clusters are numbered by their first tokens.

    Raises:
        ValueError: If ``keep`` is below 1, and as for graphs without edges or tokens that are not finite.

    Cost: a few passes over the edges in each of about ``log M`` rounds; image by image where ``keep`` is above 1.

    Example:
        >>> graph = TokenGraph.from_tokens(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])).connect_knn(1)
        >>> threshold_components(graph, 0.8).cluster.tolist()
        [0, 0, 1]
    """
    counts = graph.counts
    least = list(keep) if isinstance(keep, list | tuple) else [keep] * len(counts)
    if len(least) != len(counts) or any(k < 1 for k in least):
        raise ValueError(f"Expected keep >= 1, one number or one for each of B={len(counts)} images (got {keep!r}).")
    tokens = linked(graph, weight, least=-torch.inf)
    if max(least, default=1) == 1:
        root = components((tokens.pairs.a, tokens.pairs.b), (tokens.pairs.weight > tau)[None], tokens.x.size(0))[0]
        return _map(root, tokens)
    root = torch.arange(tokens.x.size(0), device=tokens.x.device)
    for b, count in enumerate(counts):
        pairs, start, _ = tokens.of_image(b)
        if count:
            few = root.new_tensor([min(least[b], count)])
            own = components_left((pairs.a, pairs.b), pairs.weight[None], tau, few, count)[0]
            root[start : start + count] = own + start
    return _map(root, tokens)


@explains
def k_mis(graph: TokenGraph, hops: int = 1, *, order: str = "index") -> Assignment:
    """Pools nodes into a maximal k-independent set: centres more than k hops apart that reach every node within k.

    Args:
        graph: Any token graph with edges, which count in both directions; weights are not read.
        hops: k. 0 keeps every node.
        order: Which nodes become centres first: ``"index"``, or ``"degree"`` (nodes with many neighbours first).

    Returns:
        The map, each node with its nearest centre in hops (ties: the centre chosen first), and ``centers``. Clusters
        are numbered by their centres' indices.

    Raises:
        ValueError: If ``hops`` is negative, for another order, or a graph without edges.

    Cost: a search to depth k from each centre, on the host.

    Example:
        >>> line = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
        >>> k_mis(TokenGraph.from_tokens(torch.ones(1, 5, 1)).with_edges(line)).cluster.tolist()
        [0, 0, 1, 1, 2]

    Source: Bacciu, Conte & Landolfi, *Generalizing Downsampling from Regular Data to Graphs*, AAAI 2023. Differs: their
    nodes join the reachable centre of the lowest rank, not the nearest.
    """
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise ValueError(f"Expected hops as an int >= 0 (got {hops!r}).")
    if order not in RANKS:
        raise ValueError(f"Expected order to be one of {', '.join(RANKS)} (got {order!r}).")
    tokens = linked(graph, "one")
    nodes, pairs = tokens.x.size(0), tokens.pairs
    rank = torch.zeros(nodes, dtype=torch.long, device=tokens.x.device)
    if order == "degree":
        rank = -torch.bincount(torch.cat([pairs.a, pairs.b]), minlength=nodes)
    center = independent_centers(pairs, rank, hops)
    return _map(center, tokens, centers=True)


@explains
def communities(graph: TokenGraph, *, weight: str = "cosine") -> Assignment:
    """Merges communities as long as a merge adds modularity; see :class:`tokengraph.Modularity`.

    Args:
        graph: Any token graph with edges.
        weight: As for :class:`tokengraph.HeavyEdges`.

    Returns:
        The map. Images have as many clusters as they have communities; nodes without edges stay alone.

    Raises:
        ValueError: As for :func:`threshold_components`.

    Cost: some tens of rounds, each a sort of the edges and a pass over them.
    """
    tokens = linked(graph, weight)
    if not tokens.x.size(0):
        return _map(tokens.image, tokens)
    level = tokens.level()

    def gain(level: Level) -> Tensor:
        found = modularity_gain(level)
        return torch.where(found > 0, found, -torch.inf)

    label = contract(level, [1] * graph.num_images, matching(gain), relink=0)
    return _map(label, tokens)


def _map(label: Tensor, tokens: Linked, centers: bool = False) -> Assignment:
    """Returns the map of clusters that are named by any ids, numbered by first tokens, or by the ids of centres."""
    nodes = label.numel()
    place = torch.arange(nodes, device=label.device)
    if not centers:
        bound = int(label.max()) + 1 if nodes else 0
        label = place.new_full((bound,), nodes).scatter_reduce(0, label, place, "amin")[label]
    root = label == place
    number = (root.cumsum(0) - 1)[label]
    cluster_ptr = torch.cat([number.new_zeros(1), root.cumsum(0)])[tokens.ptr]
    each = tuple(cluster_ptr.diff().tolist())
    return Assignment(
        number,
        sum(each),
        ptr=tokens.ptr,
        cluster_ptr=cluster_ptr,
        centers=root.nonzero()[:, 0] if centers else None,
        counts=each if len(set(each)) > 1 else None,
    )
