"""Nearest neighbours by cosine, a block of rows at a time, and pairs that are each other's."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import counting
from tokengraph.select.parts.graphs.halves import cosines

COSINES = 2**20  # at a time


def nearest(unit: Tensor, mask: Tensor | None = None, group: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The other token that each token resembles most.

    Args:
        unit: Unit rows, ``[B, N, D]``.
        mask: ``[B, N]`` bool, True where there is a token: no other is anyone's neighbour.
        group: ``[B, N]``: tokens of one group are no neighbours either.

    Returns:
        Its cosine ``[B, N]``, ``-inf`` where there is no other token, and its place ``[B, N]``; ties to the lower one.

    Cost: ``O(B N^2 D)`` time, 1M cosines at a time.
    """
    images, tokens = unit.shape[:2]
    step = max(1, COSINES // max(1, images * tokens))
    if torch.compiler.is_compiling():  # a step that depends on the batch would fix the batch
        step = max(1, tokens)
    found = []
    for start in range(0, tokens, step):
        block = cosines(unit[:, start : start + step], unit, mask)
        own = counting(block.size(1), unit.device) + start  # by place: a duplicate may round above it
        if group is not None:
            block = block.masked_fill(group[:, start : start + step, None] == group[:, None], -torch.inf)
        elif type(block) is Tensor:
            block[:, own - start, own] = -torch.inf
        else:  # traced into a program, for which translations write nothing in place
            block = block.masked_fill(own[:, None] == counting(tokens, unit.device), -torch.inf)
        found.append(block.max(dim=2))
    return torch.cat([f.values for f in found], dim=1), torch.cat([f.indices for f in found], dim=1)


def first_of_mutual(best: Tensor, to: Tensor, mask: Tensor | None = None) -> Tensor:
    """Whether a token is the first of a pair that are each other's nearest, ``[B, N]`` bool; arguments of `nearest`."""
    place = counting(to.size(1), to.device)
    first = (to.gather(1, to) == place) & (to > place) & (best > -torch.inf)
    return first if mask is None else first & mask & mask.gather(1, to)
