"""The member of each cluster that a score likes best."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.maps.hard import Assignment


@torch.no_grad()
def best_members(assignment: Assignment, score: Tensor) -> Tensor:
    """Returns the token of highest score of each cluster, ``[K]`` flat ids; ties to the lower index.

    Args:
        assignment: A map without empty clusters.
        score: ``[M]``.

    Cost: two passes over ``[M]``; no host synchronisation.

    Example:
        >>> best_members(Assignment(torch.tensor([0, 1, 0]), 2), torch.tensor([0.5, 1.0, 0.7])).tolist()
        [2, 1]
    """
    cluster, total = assignment.cluster, assignment.num_clusters + 1
    best = score.new_full((total,), -torch.inf).scatter_reduce(0, cluster, score, "amax")
    place = torch.arange(cluster.size(0), device=cluster.device)
    place = torch.where(score >= best.index_select(0, cluster), place, cluster.size(0))
    return place.new_full((total,), cluster.size(0)).scatter_reduce(0, cluster, place, "amin")[:-1]
