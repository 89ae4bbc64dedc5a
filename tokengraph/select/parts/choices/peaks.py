"""Chooses peaks of a score as centres, and assigns every token to one of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import counting
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
    number = center.new_zeros(center.size(0), tokens + 1).scatter_(1, centers, place)
    centers = centers.clamp_max(max(tokens - 1, 0)) if spare else centers
    assignment = Assignment.from_dense(number.gather(1, center), keep, mask=mask, centers=centers, check=False)
    return in_raster_order(assignment) if order == "raster" else assignment


def nearest_center(pairs: Distances, centers: Tensor, budget: int | list[int], mask: Tensor | None) -> Tensor:
    """Returns each token's nearest centre, ``[B, N]`` token ids; ties to the better centre; centres keep themselves."""
    x, distance = pairs.x, pairs.rows(centers)
    if isinstance(budget, list):
        place = torch.arange(centers.size(1), device=x.device)
        spare = place >= torch.tensor(budget, device=x.device)[:, None]
        distance = distance.masked_fill(spare[..., None], torch.inf)
        centers = centers.masked_fill(spare, x.size(1))
    nearest = centers.gather(1, distance.argmin(dim=1)) if centers.size(1) else centers.new_zeros(x.shape[:2])
    if not isinstance(budget, list):
        return nearest.scatter(1, centers, centers)
    own = torch.cat([nearest, nearest.new_zeros(x.size(0), 1)], dim=1).scatter_(1, centers, centers)[:, :-1]
    return own if mask is None else own.clamp_max(x.size(1) - 1)
