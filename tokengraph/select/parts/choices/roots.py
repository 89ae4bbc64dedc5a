"""Clusters by their smallest members: a map from the root of each token."""

from __future__ import annotations

from torch import Tensor

from tokengraph.flat.tables import counting
from tokengraph.maps.hard import Assignment


def map_of_roots(root: Tensor, kept: int | list[int] | None = None, mask: Tensor | None = None) -> Assignment:
    """The map of clusters that are numbered by their smallest members.

    Args:
        root: The smallest member of each token's cluster, ``[B, N]`` token ids within the image.
        kept: Clusters an image, where the caller knows them; ``None``: they are counted.
        mask: ``[B, N]`` bool, True where there is a token.

    Cost: a few passes over ``[B, N]``; one host synchronisation where ``kept`` is ``None``.
    """
    first = root == counting(root.size(1), root.device)
    first = first if mask is None else first & mask
    number = (first.cumsum(dim=1) - 1).gather(1, root)
    return Assignment.from_dense(number, first.sum(dim=1).tolist() if kept is None else kept, mask=mask)


def all_single(x: Tensor, kept: int | list[int], mask: Tensor | None) -> Assignment:
    """The map of images ``[B, N, ...]`` in which every token stays by itself, in its order."""
    place = counting(x.size(1), x.device).expand(x.size(0), -1)
    return Assignment.from_dense(place if mask is None else mask.long().cumsum(dim=1) - 1, kept, mask=mask)
