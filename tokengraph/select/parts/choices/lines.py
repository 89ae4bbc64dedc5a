"""Lines of tokens that lose as many each: the odd ones that resemble a neighbour most merge into it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.select.parts.graphs.halves import SAME, unit_rows


@torch.no_grad()
def shorten(x: Tensor, lost: int) -> Tensor:
    """The place of each token in its line once the ``lost`` best odd tokens of every line have merged.

    Tokens at odd places each look at their two even neighbours; of equal ones the left is taken, of equally similar
    tokens the lower.

    Args:
        x: Lines of tokens, ``[B, L, n, C]``.
        lost: Tokens that every line loses, at most ``n // 2``.

    Returns:
        ``[B, L, n]`` int64 in ``[0, n - lost)``; tokens that stay keep their order.

    Cost: ``O(B L n C)``, and a sort of each line's odd tokens.
    """
    images, count, n = x.shape[:3]
    if lost == 0:
        return torch.arange(n, device=x.device).expand(images, count, n)
    unit = unit_rows(x.flatten(1, 2)).unflatten(1, (count, n))
    odd, even = unit[:, :, 1::2], unit[:, :, ::2]
    left = (odd * even[:, :, : odd.size(2)]).sum(dim=3).clamp_max_(SAME)
    right = (odd[:, :, : even.size(2) - 1] * even[:, :, 1:]).sum(dim=3).clamp_max_(SAME)
    right = F.pad(right, (0, odd.size(2) - right.size(2)), value=-torch.inf)  # an even line's last token has none
    order = torch.maximum(left, right).argsort(dim=2, descending=True, stable=True)
    place = torch.arange(order.size(2), device=x.device).expand_as(order)
    leaves = torch.empty_like(order).scatter_(2, order, place) < lost
    gone, to_right = _at_odd_places(leaves, n), _at_odd_places(leaves & (right > left), n)
    return (
        (~gone).cumsum(dim=2) - 1 + to_right.long()
    )  # of a token that leaves: that of its left neighbour, or one more


def _at_odd_places(values: Tensor, n: int) -> Tensor:
    """``[..., n // 2]`` bool spread over ``[..., n]``, False at even places."""
    both = torch.stack([torch.zeros_like(values), values], dim=-1).flatten(-2)
    return F.pad(both, (0, n - both.size(-1)))
