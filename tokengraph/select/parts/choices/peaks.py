"""Chooses peaks of a score as centres, and assigns every token to one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.memory import rows_within
from tokengraph.flat.tables import counting, zeros
from tokengraph.maps.hard import Assignment
from tokengraph.maps.raster import in_raster_order
from tokengraph.select.parts.graphs.complete import Distances


def check_order(order: str, *also: str) -> None:
    """Raises unless ``order`` is a known way to number clusters: ``"index"``, ``"score"`` or one of ``also``."""
    known = ("index", "score", *also)
    if order not in known:
        words = ", ".join(repr(k) for k in known[:-1])
        raise ValueError(f"Expected order to be {words} or {known[-1]!r} (got {order!r}).")


def choose_centers(score: Tensor, order: Tensor, keep: int) -> Tensor:
    """Returns the ``keep`` best tokens by score, best first, ties by density order: ``[B, keep]``."""
    best = score.gather(1, order).argsort(dim=1, descending=True, stable=True)[:, :keep]
    return order.gather(1, best)


def assign_to_centers(
    center: Tensor, centers: Tensor, keep: int | list[int], *, mask: Tensor | None, order: str, spare: bool = False
) -> Assignment:
    """Numbers the clusters and builds the map.

    Args:
        center: Each token's centre, ``[B, N]``.
        centers: The centres, best first, ``[B, K]``; those past an image's own budget are ignored.
        keep: Clusters of each image.
        mask: ``[B, N]`` bool of real tokens, or ``None``.
        order: ``"index"``: clusters in the sequence order of their centres; ``"score"``: best centre first (an image
            that keeps all its tokens stays in order); ``"raster"``: in the order of their first tokens.
        spare: Whether ``centers`` may hold N, for a place without a centre.
    """
    tokens, spare = center.size(1), spare or isinstance(keep, list)
    place = counting(centers.size(1), centers.device).expand(centers.shape)
    if isinstance(keep, list):  # columns past an image's budget go to a spare column after the tokens
        centers = centers.masked_fill(place >= torch.tensor(keep, device=centers.device)[:, None], tokens)
    if order != "score":
        centers = centers.sort(dim=1)[0]
    elif isinstance(keep, list):
        counts = tokens if mask is None else mask.sum(dim=1)
        whole = torch.tensor(keep, device=centers.device) >= counts
        centers = torch.where(whole[:, None], centers.sort(dim=1).values, centers)
    number = zeros(center.size(0), tokens + 1, center.device).scatter(1, centers, place)
    centers = centers.clamp_max(max(tokens - 1, 0)) if spare else centers
    assignment = Assignment.from_dense(number.gather(1, center), keep, mask=mask, centers=centers, check=False)
    return in_raster_order(assignment) if order == "raster" else assignment


def nearest_center(pairs: Distances, centers: Tensor, budget: int | list[int], mask: Tensor | None) -> Tensor:
    """Returns each token's nearest centre, ``[B, N]`` token ids; ties to the better centre; centres keep themselves."""
    x = pairs.x
    if not centers.size(1):
        return centers.new_zeros(x.shape[:2])
    if not isinstance(budget, list):
        return centers.gather(1, _nearest_of(pairs, centers, None)).scatter(1, centers, centers)
    spare = counting(centers.size(1), x.device) >= torch.tensor(budget, device=x.device)[:, None]
    place, centers = _nearest_of(pairs, centers, spare), centers.masked_fill(spare, x.size(1))
    nearest = centers.gather(1, place)
    own = torch.cat([nearest, nearest.new_zeros(x.size(0), 1)], dim=1).scatter_(1, centers, centers)[:, :-1]
    return own if mask is None else own.clamp_max(x.size(1) - 1)


def _nearest_of(pairs: Distances, centers: Tensor, spare: Tensor | None) -> Tensor:
    """Returns the place in ``centers [B, K]`` of each token's nearest, ``[B, N]``, a block of centres at a time.

    Centres where ``spare [B, K]`` is True are none.
    """

    def rows(start: int, stop: int) -> Tensor:
        """Returns the distances of some centres to all tokens."""
        block = pairs.rows(centers[:, start:stop])
        return block if spare is None else block.masked_fill(spare[:, start:stop, None], torch.inf)

    step = rows_within(centers.size(0), pairs.tokens, centers.size(1), pairs.x.element_size())
    if step >= centers.size(1):
        return rows(0, centers.size(1)).argmin(dim=1)
    best = place = None
    for start in range(0, centers.size(1), step):
        block = rows(start, start + step)
        at = block.argmin(dim=1)
        low, at = block.gather(1, at[:, None]).squeeze(1), at + start
        if best is None or place is None:
            best, place = low, at
            continue
        closer = low < best  # of equals the earlier one stays
        best, place = torch.where(closer, low, best), torch.where(closer, at, place)
    assert place is not None
    return place
