"""Alternate ranks of an order form two halves, and tokens of one merge into the most similar ones of the other."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.layout import take_rows
from tokengraph.flat.looks import may_write
from tokengraph.flat.tables import counting, table
from tokengraph.select.parts.graphs.halves import best_match, unit_rows


def merge_ranked(metric: Tensor, order: Tensor, lost: int | list[int], mask: Tensor | None, mode: str) -> Tensor:
    """Returns each token's cluster within its image, ``[B, N]``; alternate ranks of ``order`` form A and B.

    Args:
        metric: What similarity is measured on, ``[B, N, D]``.
        order: Token ids by rank, ``[B, N]``; padding comes last.
        lost: Tokens that an image loses, at most half.
        mask: ``[B, N]`` bool, True where there is a token.
        mode: ``"energy"``: A and B are the first ``2 * lost`` ranks, and all of A merges; ``"bsm"``: all tokens,
            and the heaviest edges.
    """
    return merge_ranked_units(unit_rows(metric), order, lost, mask, mode)


def merge_ranked_units(unit: Tensor, order: Tensor, lost: int | list[int], mask: Tensor | None, mode: str) -> Tensor:
    """:func:`merge_ranked` by unit rows ``[B, N, D]``."""
    if isinstance(lost, int) and mask is None and may_write(order):
        return _equal(unit, order, lost, mode)
    tokens, device = order.size(1), order.device
    most, r = max(lost) if isinstance(lost, list) else lost, _column(lost, device)
    n = tokens if mask is None else mask.sum(dim=1, keepdim=True)
    taking, part = (2 * most, 2 * r) if mode == "energy" else (tokens, n)
    a, b = order[:, 0:taking:2], order[:, 1:taking:2]
    rank_a, rank_b = torch.arange(a.size(1), device=device), torch.arange(b.size(1), device=device)
    in_a, in_b = 2 * rank_a < part, 2 * rank_b + 1 < part
    there = in_b.expand_as(b) if isinstance(lost, list) else None
    best, to = best_match(take_rows(unit, a), take_rows(unit, b), there)
    if mode == "energy":
        first, gone, stays = n - 2 * r, in_a, torch.arange(0, taking, 2, device=device) - 2 * r
    else:
        falling = best.masked_fill(~in_a, -torch.inf).argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(falling).scatter_(1, falling, rank_a.expand_as(falling))
        first, gone, stays = (n + 1) // 2 - r, place < r, place - r
    number = (torch.arange(tokens, device=device) - 2 * r).expand_as(order)
    number = torch.empty_like(order).scatter_(1, order, number)  # protected tokens, by falling energy
    number = number.scatter(1, a, torch.where(gone, first + to, stays))
    return number.scatter(1, b, torch.where(in_b, first + rank_b, number.gather(1, b)))


def _equal(unit: Tensor, order: Tensor, lost: int, mode: str) -> Tensor:
    """:func:`merge_ranked_units` where all images lose as many tokens: numbers are written where they belong."""
    images, tokens = order.shape
    taking = 2 * lost if mode == "energy" else tokens
    ranked = take_rows(unit, order[:, :taking])
    best, to = best_match(ranked[:, 0::2], ranked[:, 1::2])
    first = tokens - 2 * lost if mode == "energy" else (tokens + 1) // 2 - lost
    number = _numbers(tokens, taking, lost, first, str(order.device)).expand(images, -1).clone()  # by rank
    a = number[:, 0:taking:2]
    torch.add(to, first, out=a)  # as if all of A merged
    if mode == "bsm":
        rest = best.argsort(dim=1, descending=True, stable=True)[:, lost:]
        a.scatter_(1, rest, counting(rest.size(1), order.device).expand(images, -1))
    return order.scatter(1, order, number)


@table(256)
def _numbers(tokens: int, taking: int, lost: int, first: int, device: str) -> Tensor:
    """Returns the numbers of ranks ``[N]`` that no edge decides: of B, and of the protected tokens behind."""
    number = torch.arange(tokens, device=device) - 2 * lost
    of_b = number[1:taking:2]
    number[1:taking:2] = torch.arange(first, first + of_b.numel(), device=device)
    return number


def _column(value: int | list[int], device: torch.device) -> int | Tensor:
    """Returns one number for all images, or a column ``[B, 1]`` with one for each."""
    return torch.tensor(value, device=device)[:, None] if isinstance(value, list) else value
