"""Converts the fields of hard maps to and from PyTorch Geometric's pooling classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch_geometric.nn.pool.select import SelectOutput


def select_output(
    cluster: Tensor, num_clusters: int, drops: bool, weight: Tensor | None = None, mass: Tensor | None = None
) -> SelectOutput:
    """Returns a map's fields as PyG's ``SelectOutput``; see :meth:`tokengraph.Assignment.to_select_output`.

    Args:
        cluster: ``[M]`` int64 in ``[0, K]``; K marks dropped tokens.
        num_clusters: K.
        drops: True if any token may be dropped.
        weight: ``[M]`` or ``None``.
        mass: ``[M]`` or ``None``.
    """
    from torch_geometric.nn.pool.select import SelectOutput

    tokens = cluster.numel()
    node = torch.arange(tokens, device=cluster.device)
    if drops:
        kept = cluster < num_clusters
        node, cluster = node[kept], cluster[kept]
    output = SelectOutput(node, tokens, cluster, num_clusters)
    if weight is not None:
        output.weight = weight[node]
    if weight is not None or mass is not None:  # marks these weights, since PyG's classes store scores there
        output.mass = mass  # type: ignore[attr-defined]
    return output


def clusters_of(output: SelectOutput) -> tuple[Tensor, int, bool, Tensor | None, Tensor | None]:
    """Returns the fields of a hard map that :func:`select_output` takes; see ``Assignment.from_select_output``.

    Raises:
        ValueError: If a node is in several clusters.
    """
    times = torch.bincount(output.node_index, minlength=output.num_nodes)
    if bool((times > 1).any()):
        raise ValueError(
            f"Expected each node in at most one cluster (got {int((times > 1).sum())} nodes in several). "
            "Build a SoftAssignment from its node_index, cluster_index and weight."
        )
    cluster = output.node_index.new_full((output.num_nodes,), output.num_clusters)
    cluster[output.node_index] = output.cluster_index
    weight, mass = None, None
    if hasattr(output, "mass"):
        mass = getattr(output, "mass")  # noqa: B009  # no field of PyG's
        if output.weight is not None:
            weight = output.weight.new_ones(output.num_nodes).index_copy(0, output.node_index, output.weight)
    return cluster, output.num_clusters, output.node_index.numel() < output.num_nodes, weight, mass
