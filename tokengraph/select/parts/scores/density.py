"""Density-peak scores: a token's local density, and its distance to the nearest denser token."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import LARGE
from tokengraph.edges.window_distance import look_up
from tokengraph.flat.segment import TINY
from tokengraph.flat.tables import counting
from tokengraph.select.parts.graphs.complete import Distances


def density_order(log_density: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks tokens by falling density, ties to the lower index.

    Returns:
        ``order [B, N]``, the tokens from the densest on, and ``rank [B, N]``, each token's rank in that order.
    """
    order = log_density.argsort(dim=1, descending=True, stable=True)
    return order, order.scatter(1, order, counting(order.size(1), order.device).expand(order.shape))


def _joined(parts: list[Tensor]) -> Tensor:
    """Joins blocks of rows ``[B, R, ...]``."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def density_peaks(pairs: Distances, k: int, mask: Tensor | None, include_self: bool) -> tuple[Tensor, Tensor]:
    """``log rho + log delta`` ``[B, N]``, and the tokens by falling density ``[B, N]``."""
    tokens = pairs.tokens
    near = min(k + (not include_self), tokens)
    lowest = _joined([b.topk(near, dim=2, largest=False)[0] for _, b in pairs])
    if not include_self:
        lowest = lowest[..., 1:]  # the token itself is first, at distance 0
    channels = max(pairs.x.size(2), 1)
    if mask is None:  # distances that overflowed count as very large
        log_density = lowest.clamp_max(LARGE).sum(dim=2) / (-channels * max(lowest.size(2), 1))
    else:
        there = lowest < torch.inf
        count = there.sum(dim=2).clamp_min(1) * -channels
        log_density = torch.where(there, lowest, 0.0).sum(dim=2) / count
        log_density = log_density.masked_fill(~mask, -torch.inf)
    order, rank = density_order(log_density)
    if mask is None and pairs.step >= tokens:  # one block, whose largest distance is that of the densest token
        ((_, block),) = pairs
        far = block.flatten(1).amax(dim=1)[:, None, None]
        delta = torch.where(rank[:, None, :] < rank[..., None], block, far).amin(dim=2)
        return torch.add(log_density, (delta / channels).clamp_min(TINY).log(), alpha=0.5), order
    deltas, farthest = [], []
    for start, block in pairs:
        denser = rank[:, None, :] < rank[:, start : start + block.size(1), None]
        deltas.append(torch.where(denser, block, torch.inf).amin(dim=2))
        row = block if mask is None else torch.where(block < torch.inf, block, 0.0)
        farthest.append(row.amax(dim=2))
    delta, far = _joined(deltas), _joined(farthest)
    if mask is not None:
        far = far.masked_fill(~mask, 0.0)
    delta = torch.where(delta < torch.inf, delta, far.amax(dim=1, keepdim=True))
    log_delta = (delta / channels).clamp_min(TINY).log()
    return torch.add(log_density, log_delta, alpha=0.5), order


def window_peaks(sigma: Tensor, window: Tensor, k: int, include_self: bool) -> tuple[Tensor, Tensor]:
    """``log rho + log delta`` ``[B, N]``, and the tokens by falling density ``[B, N]``."""
    near = min(k - include_self, sigma.size(2))
    lowest = sigma.topk(near, dim=2, largest=False)[0] if near else sigma[..., :0]
    used = max(near + include_self, 1)
    order, rank = density_order(log_density := lowest.square().sum(dim=2) / -used)
    denser = look_up(rank, window) < rank[..., None]
    if sigma.numel():  # without a denser token in its window, a token gets the largest distance
        delta = torch.where(denser, sigma, sigma.flatten(1).amax(dim=1)[:, None, None]).amin(dim=2)
    else:
        delta = sigma.new_ones(rank.shape)
    return log_density + delta.clamp_min(TINY).log(), order
