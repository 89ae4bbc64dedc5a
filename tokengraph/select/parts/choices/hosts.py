"""Gives every token that leaves the most similar one that stays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.flat.layout import take_rows


class Hosts(NamedTuple):
    """Guests and their hosts, as places in each image.

    Args:
        guest: ``[B, G]``, tokens that leave; of images with fewer, others come behind them.
        host: ``[B, G]``, the token that each goes to.
        score: ``[B, G]``, how similar they are, with the gradient of ``unit``.
        real: ``[B, G]`` bool, True at guests; ``None``: everywhere.
    """

    guest: Tensor
    host: Tensor
    score: Tensor
    real: Tensor | None


def find_hosts(unit: Tensor, kept: Tensor, most: int, fewest: int, mask: Tensor | None) -> Hosts:
    """Finds each guest's host; ties go to the lowest index.

    Args:
        unit: Rows whose products are the similarity, ``[B, N, D]``.
        kept: ``[B, N]`` bool, tokens that stay; at least one an image.
        most: The most that stay in any image.
        fewest: The fewest.
        mask: ``[B, N]`` bool, True where there is a token; ``None``: everywhere, and ``most`` stay in each image.

    Cost: ``O(B (N - fewest) most D)``.
    """
    stays = kept if mask is None else kept & mask
    order = (~stays).long().argsort(dim=1, stable=True)  # those that stay in front, by index
    host = order[:, :most]
    leaves = kept if mask is None else stays | ~mask
    if mask is None and most == fewest:
        guest = order[:, most:]
    else:
        guest = leaves.long().argsort(dim=1, stable=True)[:, : unit.size(1) - fewest]
    edges = torch.matmul(take_rows(unit, guest), take_rows(unit, host).transpose(1, 2))
    real = None
    if mask is not None or most != fewest:
        edges = edges.masked_fill(~stays.gather(1, host)[:, None], -torch.inf)
        real = ~leaves.gather(1, guest)
    best = edges.detach().argmax(dim=2)
    score = edges.gather(2, best[..., None])[..., 0]
    return Hosts(guest, host.gather(1, best), score, real)
