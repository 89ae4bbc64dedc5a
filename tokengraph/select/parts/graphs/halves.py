"""The bipartite graph of two alternating token sets, A and B, with cosine similarities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.memory import rows_within
from tokengraph.flat.segment import as_type

EPS = 1e-12  # as in torch.nn.functional.normalize
SAME = 1.0 - 2.0**-20  # a cosine of at least this is 1 up to rounding: such tokens tie, and the index decides


def unit_rows(metric: Tensor) -> Tensor:
    """Normalises rows ``[B, N, D]`` to unit length in float32, without gradient; zero rows stay zero.

    Pads odd widths with a zero: products of odd widths round differently by a row's memory address.
    """
    metric = as_type(metric.detach(), torch.float32)
    unit = metric / torch.linalg.vector_norm(metric, dim=-1, keepdim=True).clamp_min(EPS)
    return F.pad(unit, (0, -unit.size(2) % 16)) if unit.size(2) % 16 else unit


def cosines(a: Tensor, b: Tensor, mask_b: Tensor | None = None, *, least: float | None = None) -> Tensor:
    """Returns the edges from A to B, ``[B, n_a, n_b]``: cosines of unit rows; values of 1 up to rounding are equal.

    Args:
        a: ``[B, n_a, D]``.
        b: ``[B, n_b, D]``.
        mask_b: ``[B, n_b]`` bool, True where B has a token.
        least: Raises lower cosines to this.
    """
    score = torch.matmul(a, b.transpose(1, 2))
    if type(score) is not Tensor:  # traced into a program, for which translations write nothing in place
        score = score.clamp(least, SAME)
        return score if mask_b is None else score.masked_fill(~mask_b[:, None], -torch.inf)
    score = score.clamp_(least, SAME)
    return score if mask_b is None else score.masked_fill_(~mask_b[:, None], -torch.inf)


def best_match(a: Tensor, b: Tensor, mask_b: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the heaviest edge of each token of A, ``[B, n_a]``, and its token of B; ties to the lower index.

    Arguments as for :func:`cosines`, whose result never exists as a whole where it exceeds the memory budget.
    """
    step = rows_within(a.size(0), b.size(1), a.size(1))
    if step >= a.size(1):
        return tuple(cosines(a, b, mask_b).max(dim=2))  # type: ignore[return-value]
    found = []
    for rows in a.split(step, dim=1):
        edges = cosines(rows, b, mask_b)
        found.append((edges.amax(dim=2), edges.argmax(dim=2)))
    best, to = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return best, to


def interleave(a: Tensor, b: Tensor, first: int) -> Tensor:
    """Puts A at indices ``first, first + 2, ...`` and B at the others: ``[B, N]``."""
    out = a.new_empty(a.size(0), a.size(1) + b.size(1))
    out[:, first::2] = a
    out[:, 1 - first :: 2] = b
    return out
