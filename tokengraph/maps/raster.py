"""Renumbers clusters in the order of their tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokengraph.maps.hard import Assignment


def in_raster_order(assignment: Assignment) -> Assignment:
    """Numbers clusters in the order of their first tokens.

    If tokens are in row-major order, clusters then are too, each at its first patch, after any number of coarsenings.
    Clusters of one image stay together.

    Args:
        assignment: A map whose clusters all have a token.

    Cost: a sort of the K clusters and a few passes over ``[M]`` and ``[K]``; no host synchronisation.

    Example:
        >>> in_raster_order(Assignment(torch.tensor([1, 0, 1, 2]), 3)).cluster.tolist()
        [0, 1, 0, 2]
    """
    cluster, total = assignment.cluster, assignment.num_clusters
    token = torch.arange(cluster.size(0), device=cluster.device)
    first = token.new_full((total + 1,), cluster.size(0)).scatter_reduce(0, cluster, token, "amin")[:total]
    order = first.argsort(stable=True)
    number = torch.empty_like(order).scatter_(0, order, torch.arange(total, device=order.device))
    number = torch.cat([number, number.new_full((1,), total)])  # the bin of dropped tokens keeps its number

    def renumbered(last: Assignment) -> Assignment:
        centers = None if last.centers is None else last.centers.index_select(0, order)
        steps = (*last.steps[:-1], renumbered(last.steps[-1])) if last.steps else ()
        return replace(last, cluster=number.index_select(0, last.cluster), centers=centers, steps=steps)

    return renumbered(assignment)
