"""k nearest neighbours by batched products and top-k, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import recentre, squared_norm
from tokengraph.flat.layout import pad
from tokengraph.flat.looks import under_vmap

BUDGET = 256 * 2**20  # bytes of the largest block of distances


def search(x: Tensor, counts: list[int], k: int, *, loop: bool) -> tuple[Tensor, Tensor]:
    """Searches within each image.

    Args:
        x: Flat tokens ``[M, C]``, float32 or wider.
        counts: Tokens of each image.
        k: Neighbours a token.
        loop: Whether a token is its own first neighbour.

    Returns:
        ``neighbors [M, k]`` flat ids (-1 where an image has too few) and Euclidean ``distance [M, k]`` (inf there).
    """
    if len(set(counts)) <= 1:
        return search_equal(x.view(len(counts), -1, x.size(1)), k, loop=loop)
    dense, mask = pad(x, counts)
    local, distance = _nearest(dense, mask, k, loop)
    start = torch.tensor([0, *counts[:-1]], device=x.device).cumsum(0)
    neighbors = (local + start[:, None, None]).masked_fill(distance == torch.inf, -1)
    return neighbors[mask], distance[mask]


def search_equal(x: Tensor, k: int, *, loop: bool) -> tuple[Tensor, Tensor]:
    """As :func:`search`, for images ``[B, N, C]`` that all have N tokens."""
    local, distance = _nearest(x, None, k, loop)
    start = torch.arange(x.size(0), device=x.device) * x.size(1)
    return (local + start[:, None, None]).flatten(0, 1), distance.flatten(0, 1)


def _nearest(dense: Tensor, mask: Tensor | None, k: int, loop: bool) -> tuple[Tensor, Tensor]:
    """Neighbours within each image ``[B, N, k]``, and their distances; inf where there are too few."""
    images, tokens = dense.shape[:2]
    centred = recentre(dense, mask)
    half = 0.5 * squared_norm(centred)
    barred = half if mask is None else half.masked_fill(~mask, torch.inf)
    rows = BUDGET // max(1, tokens * dense.element_size())
    step = max(1, rows // max(1, images)) if isinstance(images, int) else tokens  # a symbolic batch goes in one piece
    parts = [_block(centred, barred, start, step, k, loop) for start in range(0, tokens, step)]
    local, score = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
    return local, (2.0 * (score + half[..., None])).clamp_min_(0.0).sqrt_()


def _block(x: Tensor, half: Tensor, start: int, rows: int, k: int, loop: bool) -> tuple[Tensor, Tensor]:
    """Neighbours of tokens ``start : start + rows``, and |x_j|^2 / 2 - x_i x_j, which ranks as the distance does."""
    query = x[:, start : start + rows]
    score = torch.baddbmm(half[:, None, :], query, x.transpose(1, 2), alpha=-1.0)
    own = torch.arange(query.size(1), device=x.device)
    score[:, own, own + start] = -torch.inf if loop else torch.inf
    value, index = lowest(score, k)
    if loop:
        value = torch.where(index == (own + start)[:, None], -half[:, start : start + rows, None], value)
    return index, value


def lowest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row ``[..., J]``, ascending, ties to the lower index: ``(value, index)`` ``[..., k]``.

    ``torch.topk`` leaves ties open. Rows where the k-th value ties with the next one are looked at again, exactly;
    under ``torch.compile`` all rows are, so that shapes stay fixed.
    """
    if torch.compiler.is_compiling() or under_vmap():
        value, index = score.sort(dim=-1, stable=True)
        return value[..., :k], index[..., :k]
    more = min(k + 1, score.size(-1))
    value, index = score.topk(more, dim=-1, largest=False, sorted=True)
    if more > k:
        tied = (value[..., k] == value[..., k - 1]) & (value[..., k] != torch.inf)
        value, index = value[..., :k].contiguous(), index[..., :k].contiguous()
        if bool(tied.any()):
            exact, place = score[tied].sort(dim=-1, stable=True)
            value[tied], index[tied] = exact[:, :k], place[:, :k]
    if not bool((value[..., 1:] == value[..., :-1]).any()):
        return value, index
    index, order = index.sort(dim=-1)
    value, again = value.gather(-1, order).sort(dim=-1, stable=True)
    return value, index.gather(-1, again)
