"""Which token of a merged pair stands for it: the one that the other merges into."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokengraph.flat.tables import counting
from tokengraph.maps.hard import Assignment


def with_receivers(assignment: Assignment, first: int, mask: Tensor | None) -> Assignment:
    """The map of one round between alternating halves, with ``centers``: of each cluster its token of B.

    Unmerged tokens of A are their own.

    Args:
        assignment: Of equal images, or of images of the True tokens of ``mask``.
        first: Place of the first token of A in each image, 0 or 1.
        mask: ``[B, N]`` bool, True where there is a token.

    Cost: a few passes over ``[M]`` and ``[K]``; no host synchronisation without a mask.
    """
    cluster, total = assignment.cluster, assignment.num_tokens
    assert assignment.ptr is not None
    images = assignment.ptr.numel() - 1
    width = total // max(images, 1) if mask is None else mask.size(1)
    in_b = ((counting(width, cluster.device) - first) % 2).expand(images, -1)
    in_b = in_b.flatten() if mask is None else in_b[mask]
    place = counting(total, cluster.device)
    rank = torch.where(in_b == 1, place, -1 - place)  # tokens of B win over those of A
    best = rank.new_zeros(assignment.num_clusters).scatter_reduce(0, cluster, rank, "amax", include_self=False)
    return replace(assignment, centers=torch.where(best < 0, -1 - best, best))
