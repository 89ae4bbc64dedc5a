"""Agglomerative clustering in rounds: all pairs of clusters that are each other's nearest merge at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import under_vmap
from tokengraph.select.parts.graphs.linkage import linkage_of
from tokengraph.select.parts.graphs.mutual import first_of_mutual

EVERY = 4  # rounds between two looks on a device that must be waited for


def agglomerate(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """The clusters that merging the closest pair, again and again, leaves.

    Average, single and complete linkage are reducible: to merge two clusters never brings a third one nearer than the
    nearer of them was. So all pairs that are each other's nearest may merge in one round, and the cheapest merges are
    those of the sequential method.

    Args:
        unit: Unit rows, ``[B, N, D]``.
        lost: Tokens that each image loses, ``[B]`` int64, less than it has.
        most: The largest of them.
        linkage: ``"average"``, ``"single"`` or ``"complete"``.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The smallest token of each token's cluster, ``[B, N]``.

    Cost: about ten rounds for 196 tokens, at most ``most``, each ``O(N^2 D)``, or ``O(N^2)`` where similarities are
    kept. On CUDA one host synchronisation in four rounds; under ``torch.func.vmap`` none, and always ``most`` rounds.
    """
    return _agglomerate(unit, lost, most, linkage, mask, not under_vmap())


@torch.library.custom_op("tokengraph::agglomerate", mutates_args=())
def agglomerate_op(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """:func:`agglomerate` as one operator for compiled models: how many rounds there are depends on the data."""
    return _agglomerate(unit, lost, most, linkage, mask, True)


@agglomerate_op.register_fake
def _(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    return unit.new_empty(unit.shape[:2], dtype=torch.long)


def all_rounds(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """:func:`agglomerate` in ``most`` rounds, which are always enough, without a look at values: for programs."""
    return _agglomerate(unit, lost, most, linkage, mask, False)


def _agglomerate(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None, look: bool) -> Tensor:
    clusters = linkage_of(unit, linkage)
    place = torch.arange(unit.size(1), device=unit.device).expand(unit.shape[:2])
    alive = torch.ones_like(place, dtype=torch.bool) if mask is None else mask
    parent, lost = place, lost[:, None]
    height = torch.full_like(unit[..., 0], torch.inf)  # of the merge in which a cluster's place was given up
    peak, born = torch.full_like(height, -torch.inf), torch.full_like(place, most)
    for number in range(most):  # each round makes the cheapest merge that there is, at least
        best, to = clusters.nearest(alive)
        if look and (not unit.is_cuda or number % EVERY == 0):
            cheap = height <= (1 - best.amax(dim=1, keepdim=True))
            if bool((cheap.sum(dim=1, keepdim=True) >= lost).all()):
                break
        first = first_of_mutual(best, to, alive)
        clusters.merge(first, to)
        second = first.gather(1, to) & (to < place) & (to.gather(1, to) == place)
        both = torch.maximum(peak, torch.maximum(peak.gather(1, to), 1 - best))  # rounding must not lower a tree
        peak = torch.where(first, both, peak)
        height, born = torch.where(second, both, height), torch.where(second, number, born)
        parent, alive = torch.where(second, to, parent), alive & ~second
    return _cut(parent, height, born, lost)


def _cut(parent: Tensor, height: Tensor, born: Tensor, lost: Tensor) -> Tensor:
    """The roots after the ``lost [B, 1]`` lowest merges, ties by the round that they came in, then by index."""
    order = born.argsort(dim=1, stable=True)
    order = order.gather(1, height.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(order.size(1), device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)
    root = torch.where(rank < lost, parent, place)
    for _ in range(max(order.size(1) - 1, 1).bit_length()):
        root = root.gather(1, root)
    return root
