"""The heaviest edges between two halves, first out of A, then out of B: a token that took another in may leave too."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.layout import take_rows
from tokengraph.flat.looks import may_write
from tokengraph.flat.tables import counting
from tokengraph.select.parts.graphs.halves import interleave


def merge_both_ways(
    weight: Tensor,
    lost: tuple[int | Tensor, int | Tensor | None],
    mask: tuple[Tensor | None, Tensor | None],
    first: int,
    *,
    by_index: bool = True,
) -> Tensor:
    """Cluster of each token within its image.

    The tokens of A whose best edges are heaviest merge each into its best token of B. Then the tokens of B whose best
    edges to the rest of A are heaviest merge into that rest, with all tokens that have merged into them.

    Args:
        weight: Edges ``[B, n_a, n_b]`` from A to B.
        lost: How many of A and of B merge: a number for all images, or a column ``[B, 1]``. ``None`` of B: none does,
            and B keeps its order.
        mask: ``[B, n_a]`` and ``[B, n_b]`` bool, True where there is a token; ``None``: everywhere.
        first: Place of the first token of A, 0 or 1.
        by_index: Whether the rest of A is numbered by index; otherwise by falling weight of its best edge.

    Returns:
        ``[B, N]``: the rest of A comes first, then the rest of B by falling weight. Ties go to the lower index.

    Cost: two maxima over the edges, two sorts.
    """
    (leave_a, leave_b), (in_a, in_b) = lost, mask
    weight = weight if in_b is None else weight.masked_fill(~in_b[:, None], -torch.inf)
    best, to = weight.max(dim=2)
    if by_index and isinstance(leave_a, int) and isinstance(leave_b, int) and in_a is None and may_write(weight):
        return _equal(weight, best, to, leave_a, leave_b, first)
    place = _places(best, in_a)
    gone = place < leave_a
    stays = ~gone if in_a is None else ~gone & in_a
    number = stays.cumsum(dim=1) - 1 if by_index else place - leave_a
    fixed = in_a is None and isinstance(leave_a, int)
    behind = weight.size(1) - leave_a if fixed else stays.sum(dim=1, keepdim=True)
    if leave_b is None:
        other = (counting(weight.size(2), to.device) + behind).expand(weight.size(0), -1)
        return interleave(torch.where(gone, other.gather(1, to), number), other, first)
    leaves = gone if in_a is None else ~stays
    back, home = weight.masked_fill(leaves[..., None], -torch.inf).max(dim=1)
    rank = _places(back, in_b)
    other = torch.where(rank < leave_b, number.gather(1, home), rank + (behind - leave_b))
    return interleave(torch.where(gone, other.gather(1, to), number), other, first)


def _equal(weight: Tensor, best: Tensor, to: Tensor, leave_a: int, leave_b: int, first: int) -> Tensor:
    """:func:`merge_both_ways` by index where images lose as many tokens: numbers are written where they belong."""
    images, in_a, in_b = weight.shape
    left = in_a - leave_a
    rest = best.argsort(dim=1, descending=True, stable=True)[:, leave_a:].sort(dim=1)[0]
    back, of_b = take_rows(weight, rest).max(dim=1)  # the place among the rest is its number
    stay = back.argsort(dim=1, descending=True, stable=True)[:, leave_b:]
    of_b.scatter_(1, stay, counting(left + in_b - leave_b, to.device)[left:].expand(images, -1))
    number = of_b.new_empty(images, in_a + in_b)
    number[:, 1 - first :: 2] = of_b
    of_a = torch.gather(of_b, 1, to, out=number[:, first::2])
    of_a.scatter_(1, rest, counting(left, to.device).expand(images, -1))
    return number


def _places(score: Tensor, mask: Tensor | None) -> Tensor:
    """The place of each token by falling score ``[B, n]``; tokens that are not there come last."""
    score = score if mask is None else score.masked_fill(~mask, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    return order.scatter(1, order, counting(order.size(1), order.device).expand(order.shape))
