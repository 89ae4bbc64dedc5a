"""What a pooling library's selection returns, as edges between nodes and clusters, and as a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokengraph.maps.gated import Gated
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


class Selection(NamedTuple):
    """Edges from nodes to clusters ``[E]``, their weights ``[E]`` or ``None``, and the number of cluster ids."""

    node: Tensor
    cluster: Tensor
    weight: Tensor | None
    clusters: int

    def moved(self, nodes: int, clusters: int) -> Selection:
        """Returns the selection with ids shifted past so many nodes and clusters."""
        return Selection(self.node + nodes, self.cluster + clusters, self.weight, self.clusters)


def read_selection(output: Any, image: Tensor) -> Selection:
    """Reads a ``SelectOutput`` of PyG or of torch-geometric-pool, by its fields.

    Args:
        output: Has a matrix ``s`` of nodes and clusters (sparse, ``[M, K]``, or padded ``[B, N, K]``), or else
            ``node_index``, ``cluster_index`` and maybe ``weight``.
        image: Image of each node, ``[M]``.

    Raises:
        TypeError: If it has neither.
    """
    s = getattr(output, "s", None)
    if isinstance(s, Tensor) and s.is_sparse:
        s = s.coalesce()
        node, cluster = s.indices()
        return Selection(node, cluster, s.values(), s.size(1))
    if isinstance(s, Tensor):
        if s.dim() == 3:  # padded images, real nodes first
            place = torch.arange(s.size(1), device=s.device) < torch.bincount(image, minlength=s.size(0))[:, None]
            s = s[place]
        node, cluster = s.nonzero(as_tuple=True)
        images = int(image[-1]) + 1 if image.numel() else 0
        return Selection(node, cluster + image[node] * s.size(1), s[node, cluster], images * s.size(1))
    if not isinstance(getattr(output, "node_index", None), Tensor) or not hasattr(output, "cluster_index"):
        raise TypeError(
            f"Expected a selection with node_index and cluster_index, or with s (got {type(output).__name__}). "
            "Give FromPyG the module that selects, not one that pools."
        )
    count = getattr(output, "num_clusters", None)
    count = int(output.cluster_index.max()) + 1 if count is None and output.cluster_index.numel() else int(count or 0)
    return Selection(output.node_index, output.cluster_index, getattr(output, "weight", None), count)


def joined(parts: Sequence[Selection]) -> Selection:
    """Joins selections whose ids are already shifted."""
    weight = None if any(p.weight is None for p in parts) else torch.cat([p.weight for p in parts])  # type: ignore[misc]
    node, cluster = torch.cat([p.node for p in parts]), torch.cat([p.cluster for p in parts])
    return Selection(node, cluster, weight, sum(p.clusters for p in parts))


def map_of_selection(chosen: Selection, image: Tensor, ptr: Tensor, gate: bool) -> Assignment | Gated | SoftAssignment:
    """Returns the map of a selection: hard if each node has at most one cluster, gated if it has weights too.

    Args:
        chosen: The selection.
        image: Image of each node, ``[M]``.
        ptr: First node of each image, ``[B+1]``.
        gate: Whether the weights of a hard selection multiply rows.

    Returns:
        The map. Clusters are numbered by their first nodes; empty ones are left out.

    Raises:
        ValueError: If a cluster has nodes of several images.
    """
    nodes, device = image.numel(), image.device
    first = chosen.node.new_full((max(chosen.clusters, 1),), nodes)
    first = first.scatter_reduce(0, chosen.cluster, chosen.node, "amin")
    if not torch.equal(image[first[chosen.cluster]], image[chosen.node]):
        raise ValueError("Expected clusters within images (got one with nodes of several). Let the module read batch.")
    order = first.argsort(stable=True)
    order = order[first[order] < nodes]
    number = torch.zeros_like(first)
    number[order] = torch.arange(order.numel(), device=device)
    cluster, count = number[chosen.cluster], order.numel()
    each = torch.bincount(image[first[order]], minlength=ptr.numel() - 1)
    cluster_ptr = torch.cat([each.new_zeros(1), each.cumsum(0)])
    counts = tuple(each.tolist())
    ragged = counts if len(set(counts)) > 1 else None
    times = torch.bincount(chosen.node, minlength=nodes)
    if bool((times > 1).any()):
        weight = torch.ones(cluster.numel(), device=device) if chosen.weight is None else chosen.weight
        total = weight.detach().new_zeros(nodes).index_add_(0, chosen.node, weight.detach())
        whole = bool(((total - 1).abs() < 1e-5).all())
        return SoftAssignment(chosen.node, cluster, weight, nodes, count, False, ptr=ptr, cluster_ptr=cluster_ptr,
                              lossless=whole, counts=ragged)  # fmt: skip
    flat = cluster.new_full((nodes,), count).index_copy(0, chosen.node, cluster)
    single = cluster.numel() == count
    hard = Assignment(
        flat, count, cluster.numel() < nodes, ptr, cluster_ptr, first[order] if single else None, single, ragged
    )
    if chosen.weight is None or not gate:
        return hard
    rows = chosen.weight.new_ones(nodes).index_copy(0, chosen.node, chosen.weight)
    return Gated(**hard.__dict__, gate=rows)
