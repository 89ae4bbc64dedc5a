"""k nearest neighbours by batched products and top-k, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import PIECE, near_origin, recentre, squared_norm
from tokengraph.edges.knn_doubt import Doubt, Listed, Rows
from tokengraph.flat.layout import pad
from tokengraph.flat.looks import under_vmap
from tokengraph.flat.memory import memory_budget


def search(x: Tensor, counts: list[int], k: int, *, loop: bool) -> tuple[Tensor, Tensor]:
    """Searches within each image.

    Args:
        x: Flat tokens ``[M, C]``, float32 or wider.
        counts: Tokens of each image.
        k: Neighbours per token.
        loop: Whether a token is its own first neighbour.

    Returns:
        ``neighbors [M, k]`` flat ids (-1 if an image has too few) and Euclidean ``distance [M, k]`` (inf there).

    Raises:
        ValueError: If a distance exceeds the dtype of ``x``.

    Cost: ``O(B N^2 C)`` time; blocks within :func:`~tokengraph.flat.memory.memory_budget`.
    """
    if len(set(counts)) <= 1:
        return search_equal(x.view(len(counts), -1, x.size(1)), k, loop=loop)
    dense, mask = pad(x, counts)
    local, distance = _nearest(dense, mask, k, loop)
    start = torch.tensor([0, *counts[:-1]], device=x.device).cumsum(0)
    neighbors = (local + start[:, None, None]).masked_fill(distance == torch.inf, -1)
    return neighbors[mask], distance[mask]


def search_equal(x: Tensor, k: int, *, loop: bool) -> tuple[Tensor, Tensor]:
    """Does :func:`search` for images ``[B, N, C]`` that all have N tokens."""
    local, distance = _nearest(x, None, k, loop)
    start = torch.arange(x.size(0), device=x.device) * x.size(1)
    return (local + start[:, None, None]).flatten(0, 1), distance.flatten(0, 1)


def _nearest(dense: Tensor, mask: Tensor | None, k: int, loop: bool) -> tuple[Tensor, Tensor]:
    """Returns neighbours within each image ``[B, N, k]`` and their distances, inf for missing neighbours."""
    images, tokens = dense.shape[:2]
    search = _Search(dense, mask, k, loop)
    rows = memory_budget() // max(1, tokens * dense.element_size())
    step = max(1, rows // max(1, images)) if isinstance(images, int) else tokens  # a symbolic batch goes in one piece
    parts = [search.block(start, step) for start in range(0, tokens, step)]
    if len(parts) == 1:
        return parts[0]
    local, distance = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
    return local, distance


class _Search:
    """One search over images ``[B, N, C]``: products for all rows, then differences for rows with uncertain results.

    When compiled, shapes must not depend on values, so it uses products alone.
    """

    def __init__(self, dense: Tensor, mask: Tensor | None, k: int, loop: bool) -> None:
        self.dense, self.mask, self.k, self.loop = dense, mask, k, loop
        self.x = recentre(dense, mask) if mask is not None else dense - near_origin(dense)
        self.half = 0.5 * squared_norm(self.x)
        self.barred = self.half if mask is None else self.half.masked_fill(~mask, torch.inf)
        self.products_only = torch.compiler.is_compiling() or under_vmap()  # there, values cannot be read
        if not self.products_only:
            self.doubt = Doubt(self.x, self.half)

    def block(self, start: int, rows: int) -> tuple[Tensor, Tensor]:
        """Returns the neighbours of tokens ``start : start + rows``, and their distances ``[B, rows, k]``."""
        x, k = self.x, self.k
        query = x[:, start : start + rows]
        # |x_j|^2 / 2 - x_i x_j has the same order as the distance.
        score = torch.baddbmm(self.barred[:, None, :], query, x.transpose(1, 2), alpha=-1.0)
        score.diagonal(start, 1, 2).fill_(-torch.inf if self.loop else torch.inf)
        half = self.half[:, start : start + rows]
        if self.products_only:
            value, index = lowest(score, k)
            distance = (2.0 * (value + half[..., None])).clamp_min_(0.0).sqrt_()
            return index, distance.masked_fill(value == -torch.inf, 0.0) if self.loop else distance
        value, index = _topk(score, min(k + 1, score.size(2)))
        rows_of = self.doubt.rows(value, start, loop=self.loop, empty=self.mask is not None)
        if self.mask is not None:
            rows_of.doubted &= self.mask[:, start : start + rows]
        again = self._again(score, value, index, rows_of, start)
        if rows_of.tied:
            value, index = _ties(score, value, index, k)
        else:
            value, index = value[..., :k], index[..., :k].contiguous()
        distance = torch.add((2.0 * half)[..., None], value, alpha=2.0).clamp_min_(0.0).sqrt_()
        if self.loop:  # a token is at 0 from itself: its score is -inf
            distance = torch.where(value == -torch.inf, 0.0, distance)
        for row, better, exact in again:
            index.view(-1, k).index_copy_(0, row, better)
            distance.view(-1, k).index_copy_(0, row, exact)
        return index, distance

    def _again(
        self, score: Tensor, value: Tensor, index: Tensor, rows: Rows, start: int
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The doubted rows of a block, their neighbours and distances; a few rows at a time."""
        found, width, tokens = [], score.size(1), score.size(2)
        for row in rows.doubted.flatten().nonzero().squeeze(1).split(max(1, 4 * PIECE // max(1, tokens))):
            image = row // width
            listed = Listed(
                image,
                row - image * width + start,
                score.flatten(0, 1).index_select(0, row),
                value.flatten(0, 1).index_select(0, row),
                index.flatten(0, 1).index_select(0, row)[:, : self.k],
                rows.error.flatten().index_select(0, row)[:, None],
            )
            found.append((row, *self.doubt.search_again(listed, self.dense, self.mask, self.k, self.loop)))
        return found


def lowest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k smallest of each row ``[..., J]``, ascending, ties to the lower index.

    ``torch.topk`` leaves the order of ties open. Rows in which the k-th value ties with the next one are sorted in
    full; under ``torch.compile`` all rows are, so that shapes stay fixed.

    Returns:
        ``value`` and ``index``, both ``[..., k]``.
    """
    if torch.compiler.is_compiling() or under_vmap():
        value, index = score.sort(dim=-1, stable=True)
        return value[..., :k], index[..., :k]
    value, index = _topk(score, min(k + 1, score.size(-1)))
    return _ties(score, value, index, k)


def _topk(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row ``[..., J]``, ascending; of equal ones any.

    On CPU, where ``torch.topk`` visits every number one by one, long rows are searched twice: the k groups of columns
    with the smallest minima hold the k smallest. A quarter less time at 196 and 1024 columns, ``k = 9``.
    """
    width = score.size(-1)
    if score.device.type != "cpu" or k < 4 or width < 16 * k:
        return score.topk(k, dim=-1, largest=False, sorted=True)
    members = 4 if width < 512 else 8
    groups = width // members  # column j is in group j % groups; the last few columns are in none
    low = score[..., : groups * members].reshape(*score.shape[:-1], members, groups).amin(dim=-2)
    place = low.topk(k, dim=-1, largest=False, sorted=False).indices
    place = (place[..., None] + torch.arange(0, groups * members, groups)).flatten(-2)
    if groups * members < width:
        others = torch.arange(groups * members, width)
        place = torch.cat([place, others.expand(*place.shape[:-1], -1)], dim=-1)
    value, at = score.gather(-1, place).topk(k, dim=-1, largest=False, sorted=True)
    return value, place.gather(-1, at)


def _ties(score: Tensor, value: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the first k of ``k + 1`` values and indices from top-k, with ties sorted by index."""
    if value.size(-1) > k:
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
