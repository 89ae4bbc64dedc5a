"""Connects clusters whose tokens are connected: ``S^T A S`` for hard and for soft maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from tokengraph.maps.product import Edges, product


def connect_hard(
    cluster: Tensor, num_clusters: int, edge_index: Tensor, edge_weight: Tensor | None, loops: bool
) -> tuple[Tensor, Tensor]:
    """Connects the clusters of a hard map; see :meth:`tokengraph.Assignment.connect`.

    Args:
        cluster: Cluster of each token, ``[M]`` int64 in ``[0, K]``; K marks dropped tokens.
        num_clusters: K.
        edge_index: ``[2, E]`` token edges, source to target.
        edge_weight: ``[E]``; ``None`` counts edges.
        loops: Keep the diagonal.
    """
    if edge_weight is None:
        edge_weight = torch.ones(edge_index.size(1), dtype=torch.float32, device=edge_index.device)
    ends = cluster[edge_index]
    keep = (ends < num_clusters).all(dim=0)
    keep = keep if loops else keep & (ends[0] != ends[1])
    found: Any = coalesce(ends[:, keep], edge_weight[keep], num_nodes=num_clusters, reduce="sum")
    return found


def connect_soft(
    edges: Edges, num_tokens: int, edge_index: Tensor, edge_weight: Tensor | None, loops: bool
) -> tuple[Tensor, Tensor]:
    """Connects the clusters of a soft map; see :meth:`tokengraph.SoftAssignment.connect`.

    Args:
        edges: Token, cluster and weight of the map's edges.
        num_tokens: M.
        edge_index: ``[2, E]`` token edges, source to target.
        edge_weight: ``[E]``; ``None`` counts edges.
        loops: Keep the diagonal.
    """
    token, cluster, own = edges
    if edge_weight is None:
        edge_weight = own.new_ones(edge_index.size(1))
    left = product((cluster, token, own), (edge_index[0], edge_index[1], edge_weight), num_tokens)
    source, target, weight = product(left, edges, num_tokens)
    index = torch.stack([source, target])
    if not loops:
        keep = source != target
        index, weight = index[:, keep], weight[keep]
    return index, weight
