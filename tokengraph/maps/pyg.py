"""Exchange of hard maps with PyTorch Geometric's pooling classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokengraph.maps.hard import Assignment

if TYPE_CHECKING:
    from torch_geometric.nn.pool.select import SelectOutput


def to_select_output(assignment: Assignment) -> SelectOutput:
    """See :meth:`Assignment.to_select_output`."""
    from torch_geometric.nn.pool.select import SelectOutput

    node, cluster = torch.arange(assignment.num_tokens, device=assignment.cluster.device), assignment.cluster
    if assignment.drops:
        kept = cluster < assignment.num_clusters
        node, cluster = node[kept], cluster[kept]
    return SelectOutput(node, assignment.num_tokens, cluster, assignment.num_clusters)


def from_select_output(output: SelectOutput) -> Assignment:
    """See :meth:`Assignment.from_select_output`."""
    times = torch.bincount(output.node_index, minlength=output.num_nodes)
    if bool((times > 1).any()):
        raise ValueError(
            f"Expected each node in at most one cluster (got {int((times > 1).sum())} nodes in several). "
            "Build a SoftAssignment from its node_index, cluster_index and weight."
        )
    cluster = output.node_index.new_full((output.num_nodes,), output.num_clusters)
    cluster[output.node_index] = output.cluster_index
    return Assignment(cluster, output.num_clusters, drops=output.node_index.numel() < output.num_nodes)
