"""Medoids: tokens from which the others of their cluster lie least far, found by turns of two steps."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.graphs.complete import Distances

EQUAL = 1.0 + 2.0**-21  # sums of distances within this factor of the least tie, and the index decides


def refine_medoids(
    pairs: Distances, centers: Tensor, weight: Tensor, iterations: int, *, objective: str = "cluster"
) -> tuple[Tensor, Tensor]:
    """Gives every token to its nearest centre, and every cluster the member that is nearest to all, in turns.

    Args:
        pairs: Distances of the tokens ``[B, N]``.
        centers: The first centres, ``[B, M]`` tokens of each image; value N marks places that an image does not use.
        weight: How much each token counts, ``[B, N]``.
        iterations: Turns.
        objective: ``"cluster"``: a member's cost is the weighted sum of distances to its cluster; ``"released"``: its
            own weight times the sum of distances to all tokens.

    Returns:
        The last centres ``[B, M]``, and the place in them of each token's own, ``[B, N]``; M for padding. Ties go to
        the lower place, and among members to the lower index. A centre is in its own cluster, so none is empty.

    Cost: ``O(N^2)`` an iteration and image, a block of distances at a time.
    """
    total = _costs(pairs, None, torch.ones_like(weight)) * weight if objective == "released" else None
    for _ in range(iterations):
        label = nearest_place(pairs, centers)
        cost = _costs(pairs, label, weight) if total is None else total
        found = _least(cost, label, centers.size(1))
        centers = torch.where(centers < cost.size(1), found, centers)
    return centers, nearest_place(pairs, centers)


def farthest_first(pairs: Distances, most: int) -> Tensor:
    """The token nearest to all, then again and again the one farthest from those chosen: ``[B, most]``.

    Ties go to the lower index; no token comes twice while there are others. Cost: ``most`` rows of distances, one
    after another.
    """
    mask = pairs.mask
    ones = pairs.x.new_ones(pairs.x.shape[:2])
    label = torch.zeros_like(ones, dtype=torch.long)
    if mask is not None:
        label = label.masked_fill(~mask, 1)
    chosen = [_least(_costs(pairs, None, ones), label, 1).clamp_max(max(pairs.tokens - 1, 0))]
    apart = (
        torch.full_like(ones, torch.inf) if mask is None else torch.full_like(ones, torch.inf).masked_fill(~mask, -1)
    )
    for _ in range(most - 1):
        apart = torch.minimum(apart, pairs.rows(chosen[-1])[:, 0])
        apart = apart.scatter(1, chosen[-1], -1.0)
        apart = apart if mask is None else apart.masked_fill(~mask, -2.0)
        chosen.append(apart.argmax(dim=1, keepdim=True))
    return torch.cat(chosen, dim=1)


def nearest_place(pairs: Distances, centers: Tensor) -> Tensor:
    """Which of the centres ``[B, M]`` is nearest to each token: its place, ``[B, N]``; M for padding."""
    tokens, count = pairs.tokens, centers.size(1)
    spare = centers >= tokens
    at = centers.clamp_max(max(tokens - 1, 0))
    near = []
    for _, block in pairs:
        columns = block.gather(2, at[:, None].expand(-1, block.size(1), -1))
        near.append(columns.masked_fill(spare[:, None], torch.inf).argmin(dim=2))
    label = torch.cat(near, dim=1)
    label = torch.cat([label, label.new_zeros(label.size(0), 1)], dim=1)  # a spare column behind the tokens
    place = torch.arange(count, device=label.device)
    label = label.scatter(1, centers, place.expand_as(centers))[:, :-1]
    return label if pairs.mask is None else label.masked_fill(~pairs.mask, count)


def _costs(pairs: Distances, label: Tensor | None, weight: Tensor) -> Tensor:
    """The weighted sum of each token's distances to the tokens of its cluster (``None``: to all), ``[B, N]``."""
    found = []
    for start, block in pairs:
        far = block.clamp_min(0.0).sqrt() * weight[:, None]
        if pairs.mask is not None:
            far = far.masked_fill(~pairs.mask[:, None], 0.0)
        if label is not None:
            far = far.masked_fill(label[:, start : start + block.size(1), None] != label[:, None], 0.0)
        found.append(far.sum(dim=2))
    return torch.cat(found, dim=1)


def _least(cost: Tensor, label: Tensor, count: int) -> Tensor:
    """The member of least cost of each cluster ``[B, count]``, ties to the lower index; N for one without members."""
    tokens = cost.size(1)
    least = cost.new_full((cost.size(0), count + 1), torch.inf).scatter_reduce(1, label, cost, "amin")
    among = cost <= least.gather(1, label) * EQUAL
    place = torch.where(among, torch.arange(tokens, device=cost.device), tokens)
    found = place.new_full((cost.size(0), count + 1), tokens).scatter_reduce(1, label, place, "amin")
    return found[:, :count]
