"""Facility location: destinations chosen one after another, each covering the tokens that are covered least."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.graphs.halves import unit_rows

TIE = 1e-6  # gains within this times N of the best count as equal: structural ties would be decided by rounding


def cover(x: Tensor, rounds: int, mask: Tensor | None = None) -> Tensor:
    r"""Chooses ``rounds`` tokens of each set greedily for :math:`\sum_j \max_{d \in D} \cos(x_j, x_d)`.

    Args:
        x: Sets of tokens, ``[B, n, C]``.
        rounds: Tokens to choose of each set, at most n.
        mask: ``[B, n]`` bool, True where there is a token; a set with fewer tokens than rounds repeats some.

    Returns:
        ``[B, rounds]`` token ids within the sets, in the order of choice; no token twice, ties to the lower index.

    Cost: ``O(B n^2 (C + rounds))`` time, ``2 B n^2`` floats; ``rounds`` steps one after another.
    """
    images, tokens = x.shape[:2]
    unit = unit_rows(x)
    same = torch.matmul(unit, unit.transpose(1, 2))  # candidates by tokens
    place = torch.arange(tokens, device=x.device)
    barred = torch.zeros(images, tokens, dtype=torch.bool, device=x.device)
    if mask is not None:
        same = same.masked_fill(~mask[:, None], 0.0)  # what covers padding counts for nothing
        barred = ~mask
    gain, best, chosen = same.sum(dim=2), None, []
    for _ in range(rounds):
        gain = gain.masked_fill(barred, -torch.inf)
        top = gain.amax(dim=1, keepdim=True) - TIE * tokens
        one = torch.where(gain >= top, place, tokens).amin(dim=1).clamp_max(tokens - 1)
        chosen.append(one)
        barred = barred | (place == one[:, None])
        row = same.gather(1, one[:, None, None].expand(-1, 1, tokens))
        best = row if best is None else torch.maximum(best, row)
        if len(chosen) < rounds:
            gain = (same - best).clamp_min_(0.0).sum(dim=2)
    return torch.stack(chosen, dim=1) if chosen else place.new_zeros(images, 0)
