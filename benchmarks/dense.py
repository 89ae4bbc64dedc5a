"""The dense forms that published codes use, written from their definitions, to compare with.

Everything is ``[B, N, C]``, clusters are numbered within their image, and an index over tokens is expanded over the
channels before ``gather`` or ``scatter_reduce``. Docstrings say where a published code is known to be faster.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def knn(x: Tensor, k: int) -> Tensor:
    """Indices ``[B, N, k]`` of the nearest tokens, self left out: all distances, then top-k."""
    return torch.cdist(x, x).topk(k + 1, dim=2, largest=False).indices[..., 1:]


def dpc_knn(x: Tensor, keep: int, *, k: int = 5) -> Tensor:
    """DPC-KNN by TCFormer's definition without noise: cluster ``[B, N]``, numbered best centre first."""
    distance = torch.cdist(x, x) / x.size(2) ** 0.5
    density = (-distance.topk(k, dim=2, largest=False).values.square().mean(dim=2)).exp()
    denser = (density[:, None, :] > density[:, :, None]).to(x.dtype)
    farthest = distance.flatten(1).max(dim=1).values[:, None, None]
    delta = (distance * denser + farthest * (1 - denser)).min(dim=2).values
    centers = (density * delta).topk(keep, dim=1).indices
    to_centers = distance.gather(1, centers[..., None].expand(-1, -1, x.size(1)))
    return _own(to_centers.argmin(dim=1), centers)


def ailurus(x: Tensor, keep: int, rank: Tensor, *, k: int = 5, lam: int = 50, alpha: float = 0.9) -> Tensor:
    """AiluRus by this library's definition on ``N x N`` matrices: cluster ``[B, N]``, numbered best anchor first.

    ``rank`` is ``[N, N]`` from :func:`spatial_rank`, made once for a grid.
    """
    everywhere = (alpha + (1 - alpha) * rank / lam) * (torch.cdist(x, x) / x.size(2) ** 0.5 + 1e-6)
    sigma = everywhere.masked_fill((rank > lam) | (rank == 0), torch.inf)
    density = (-sigma.topk(k, dim=2, largest=False).values.square().mean(dim=2)).exp()
    denser = density[:, None, :] > density[:, :, None]
    delta = sigma.masked_fill(~denser, torch.inf).min(dim=2).values
    farthest = sigma.masked_fill(sigma == torch.inf, 0.0).flatten(1).max(dim=1, keepdim=True).values
    centers = (density * torch.where(delta < torch.inf, delta, farthest)).topk(keep, dim=1).indices
    columns = centers[:, None, :].expand(-1, x.size(1), -1)
    near, far = sigma.gather(2, columns), everywhere.gather(2, columns)
    nearest = torch.where(near.amin(dim=2) < torch.inf, near.argmin(dim=2), far.argmin(dim=2))
    return _own(nearest, centers)


def spatial_rank(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Tensor:
    """``[N, N]`` float32: place of patch j among all patches by distance from patch i, ties to the lower index."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    at = torch.stack([y.flatten(), x.flatten()], dim=1)
    order = (at[:, None] - at).square().sum(dim=2).argsort(dim=1, stable=True)
    return order.argsort(dim=1).float().to(device)


def _own(cluster: Tensor, centers: Tensor) -> Tensor:
    """Assigns each centre to its own cluster."""
    place = torch.arange(centers.size(1), device=centers.device).expand_as(centers)
    return cluster.scatter(1, centers, place)


def merge(x: Tensor, size: Tensor, cluster: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of each cluster by ``scatter_reduce``: ``[B, K, C]`` and sizes ``[B, K, 1]``.

    ``size`` is ``[B, N, 1]``. (TCFormer's own code adds into flat rows with ``index_add_``, as this library does.)
    """
    index = cluster[..., None]
    total = size.new_zeros(x.size(0), keep, 1).scatter_reduce(1, index, size, "sum")
    summed = x.new_zeros(x.size(0), keep, x.size(2)).scatter_reduce(1, index.expand_as(x), x * size, "sum")
    return summed / total, total


def unmerge(y: Tensor, cluster: Tensor) -> Tensor:
    """Each token's cluster row, ``[B, N, C]``."""
    return y.gather(1, cluster[..., None].expand(-1, -1, y.size(2)))


class Matching(NamedTuple):
    """ToMe's indices: unmerged and merged places of the even set, and where in the odd set the merged ones go."""

    unmerged: Tensor  # [B, N_even - r, 1]
    source: Tensor  # [B, r, 1]
    target: Tensor  # [B, r, 1]
    num_tokens: int


def tome(metric: Tensor, r: int, *, class_token: bool = False) -> Matching:
    """ToMe's bipartite soft matching by its definition, on the whole sequence ``[B, N, D]``."""
    metric = metric / metric.norm(dim=-1, keepdim=True)
    a, b = metric[:, ::2], metric[:, 1::2]
    scores = a @ b.transpose(1, 2)
    if class_token:
        scores[:, 0, :] = -torch.inf
    best, partner = scores.max(dim=2)
    order = best.argsort(dim=1, descending=True)[..., None]
    unmerged, source = order[:, r:], order[:, :r]
    target = partner[..., None].gather(1, source)
    if class_token:
        unmerged = unmerged.sort(dim=1).values
    return Matching(unmerged, source, target, metric.size(1))


def tome_merge(x: Tensor, size: Tensor, match: Matching) -> tuple[Tensor, Tensor]:
    """ToMe's size-weighted average: both ``x`` and ``size [B, N, 1]`` are gathered, scattered and concatenated."""
    total = _tome_sum(size, match)
    return _tome_sum(x * size, match) / total, total


def _tome_sum(x: Tensor, match: Matching) -> Tensor:
    channels = x.size(2)
    even, odd = x[:, ::2], x[:, 1::2]
    unmerged = even.gather(1, match.unmerged.expand(-1, -1, channels))
    source = even.gather(1, match.source.expand(-1, -1, channels))
    odd = odd.scatter_reduce(1, match.target.expand(-1, -1, channels), source, "sum")
    return torch.cat([unmerged, odd], dim=1)


def tome_unmerge(y: Tensor, match: Matching) -> Tensor:
    """ToMe's unmerge to ``[B, N, C]``: writes rows to even and odd places."""
    channels, left = y.size(2), match.unmerged.size(1)
    unmerged, odd = y[:, :left], y[:, left:]
    source = odd.gather(1, match.target.expand(-1, -1, channels))
    out = y.new_zeros(y.size(0), match.num_tokens, channels)
    out[:, 1::2] = odd
    out.scatter_(1, (2 * match.unmerged).expand(-1, -1, channels), unmerged)
    return out.scatter_(1, (2 * match.source).expand(-1, -1, channels), source)


def topk(score: Tensor, keep: int) -> Tensor:
    """Top-k pruning as EViT-like codes write it: kept indices ``[B, K]``, best first."""
    return score.argsort(dim=1, descending=True)[:, :keep]


def prune(x: Tensor, index: Tensor) -> Tensor:
    """The kept rows, ``[B, K, C]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.size(2)))


def unprune(y: Tensor, index: Tensor, num_tokens: int) -> Tensor:
    """Kept rows at their places, zeros elsewhere, ``[B, N, C]``."""
    out = y.new_zeros(y.size(0), num_tokens, y.size(2))
    return out.scatter_(1, index[..., None].expand(-1, -1, y.size(2)), y)


def fuse(x: Tensor, score: Tensor, index: Tensor) -> Tensor:
    """EViT: the kept rows, then the sum of all others weighted by score, ``[B, K+1, C]``."""
    rest = torch.ones_like(score, dtype=torch.bool).scatter(1, index, False)
    others = rest.nonzero()[:, 1].view(x.size(0), -1)
    weight = score.gather(1, others)
    return torch.cat([prune(x, index), (prune(x, others) * weight[..., None]).sum(dim=1, keepdim=True)], dim=1)


def grid_pool(x: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """Average pooling of the feature map over cells of ``cell`` patches, ``[B, K, C]``."""
    image = x.transpose(1, 2).reshape(x.size(0), x.size(2), *grid)
    return F.avg_pool2d(image, cell).flatten(2).transpose(1, 2)


def grid_unpool(y: Tensor, grid: tuple[int, int], cell: tuple[int, int]) -> Tensor:
    """Each cell's row for all its patches, ``[B, N, C]``. (``F.interpolate`` does the same, and is slower at B = 1.)"""
    height, width = grid[0] // cell[0], grid[1] // cell[1]
    rows = y.view(y.size(0), height, 1, width, 1, -1)
    return rows.expand(-1, -1, cell[0], -1, cell[1], -1).reshape(y.size(0), grid[0] * grid[1], -1)
