"""Agglomerative clustering in rounds: all pairs of clusters that are each other's nearest merge at once."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import under_vmap
from tokengraph.select.parts.graphs.linkage import linkage_of

# Given, because torch 2.4 cannot read postponed annotations.
SCHEMA = "(Tensor unit, Tensor lost, SymInt most, str linkage, Tensor? mask=None) -> Tensor"
EVERY = 4  # rounds between two looks on a device that must be waited for


def agglomerate(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """The clusters that merging the closest pair, again and again, leaves.

    Average, single and complete linkage are reducible: to merge two clusters never brings a third one nearer than the
    nearer of them was. So all pairs that are each other's nearest may merge in one round, and the cheapest merges are
    those of the sequential method. By single linkage every cluster's edge to its nearest is one of the minimum spanning
    tree, so all of these count in one round, as in Boruvka's method.

    Args:
        unit: Unit rows, ``[B, N, D]``.
        lost: Tokens that each image loses, ``[B]`` int64, less than it has.
        most: The largest of them.
        linkage: ``"average"``, ``"single"`` or ``"complete"``.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The smallest token of each token's cluster, ``[B, N]``.

    Cost: about ten rounds for 196 tokens, at most ``most`` (``"single"``: ``log2 N``), each ``O(N^2 D)``, or ``O(N^2)``
    where similarities are kept. On CUDA one host synchronisation in four rounds; under ``torch.func.vmap``
    none, and always the most rounds.
    """
    return _agglomerate(unit, lost, most, linkage, mask, not under_vmap())


@torch.library.custom_op("tokengraph::agglomerate", mutates_args=(), schema=SCHEMA)
def agglomerate_op(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """:func:`agglomerate` as one operator for compiled models: how many rounds there are depends on the data."""
    return _agglomerate(unit, lost, most, linkage, mask, True)


@agglomerate_op.register_fake
def _(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    return unit.new_empty(unit.shape[:2], dtype=torch.long)


def all_rounds(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None = None) -> Tensor:
    """:func:`agglomerate` in as many rounds as are always enough, without a look at values: for programs."""
    return _agglomerate(unit, lost, most, linkage, mask, False)


def _agglomerate(unit: Tensor, lost: Tensor, most: int, linkage: str, mask: Tensor | None, look: bool) -> Tensor:
    clusters = linkage_of(unit, linkage)
    place = torch.arange(unit.size(1), device=unit.device).expand(unit.shape[:2])
    alive = torch.ones_like(place, dtype=torch.bool) if mask is None else mask
    parent, lost = place, lost[:, None]
    height = torch.full_like(unit[..., 0], torch.inf)  # of the merge in which a cluster's place was given up
    peak, born = torch.full_like(height, -torch.inf), torch.full_like(place, most)
    for number in range(min(most, clusters.rounds)):  # each round makes the cheapest merge that there is, at least
        best, to = clusters.nearest(alive)
        if look and (not unit.is_cuda or number % EVERY == 0):
            cheap = height <= (1 - best.amax(dim=1, keepdim=True))
            if bool((cheap.sum(dim=1, keepdim=True) >= lost).all()):
                break
        to = torch.where(best > -torch.inf, to, place)
        first = first_of_cycle(to) & (to != place)
        if clusters.all_at_once:
            into, cost = torch.where(first, place, to), 1 - best
        else:
            into = _taken_by(first, to, place)
            both = torch.maximum(peak, torch.maximum(peak.gather(1, to), 1 - best))  # rounding must not lower a tree
            peak, cost = torch.where(first, both, peak), both.gather(1, into)
        leaves = into != place
        clusters.merge(into, leaves)
        height, born = torch.where(leaves, cost, height), torch.where(leaves, number, born)
        parent, alive = torch.where(leaves, into, parent), alive & ~leaves
    return _cut(parent, height, born, lost)


def first_of_cycle(to: Tensor) -> Tensor:
    """The lowest place of each cycle of ``i -> to[i]``, ``[B, N]`` bool.

    Of tokens and their nearest others every cycle is a pair that are each other's nearest, but where products that
    should be equal round apart: even then each image that has two clusters has a cycle, so that something merges.
    """
    low = torch.arange(to.size(1), device=to.device).expand_as(to)
    place, ahead = low, to
    for _ in range(max(to.size(1) - 1, 1).bit_length()):
        low, ahead = torch.minimum(low, low.gather(1, ahead)), ahead.gather(1, ahead)
    on_cycle = torch.zeros_like(to).scatter_reduce(1, ahead, torch.ones_like(to), "amax")
    return (on_cycle > 0) & (low == place)


def _taken_by(first: Tensor, to: Tensor, place: Tensor) -> Tensor:
    """The cluster that each one merges into where every ``first`` takes its ``to``: itself for all others."""
    spare = torch.cat([place, place[:, :1]], dim=1)  # the last column is for those that take none
    return spare.scatter(1, torch.where(first, to, place.size(1)), place)[:, :-1]


def _cut(parent: Tensor, height: Tensor, born: Tensor, lost: Tensor) -> Tensor:
    """The smallest token of each cluster after the ``lost [B, 1]`` lowest merges, ties by round, then by index."""
    order = born.argsort(dim=1, stable=True)
    order = order.gather(1, height.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(order.size(1), device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, place)
    root = torch.where(rank < lost, parent, place)
    for _ in range(max(order.size(1) - 1, 1).bit_length()):
        root = root.gather(1, root)
    return place.scatter_reduce(1, root, place, "amin").gather(1, root)
