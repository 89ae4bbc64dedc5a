"""PiToMe's energy, a score that is high for tokens that resemble many others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.memory import rows_within
from tokengraph.select.parts.graphs.halves import unit_rows


@torch.no_grad()
def energy(metric: Tensor, *, margin: float, alpha: float = 1.0, mask: Tensor | None = None) -> Tensor:
    r"""Scores tokens by how many others resemble them.

    .. math:: E_i = \frac1N \sum_j f(\cos(k_i, k_j) - m), \qquad f(z) = z \text{ if } z > 0, \text{ else }
              \alpha (e^z - 1)

    Args:
        metric: Features for the similarity, ``[B, N, D]``.
        margin: m, the cosine above which two tokens count as similar.
        alpha: Weight of cosines below the margin.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        ``[B, N]`` float32; the sum includes j = i. Zero vectors have cosine 0 with all. ``-inf`` at padding.

    Cost: ``O(B N^2 D)`` time; blocks within :func:`~tokengraph.flat.memory.memory_budget`.

    Source: Tran et al., *PiToMe*, NeurIPS 2024, and its code.
    """
    with torch.autocast(metric.device.type, enabled=False):
        return energy_of(unit_rows(metric), margin, alpha, mask)


def energy_of(unit: Tensor, margin: float, alpha: float, mask: Tensor | None) -> Tensor:
    """:func:`energy` of unit rows ``[B, N, D]``."""
    if mask is not None:
        unit = unit.masked_fill(~mask[..., None], 0.0)
    step, rows = rows_within(unit.size(0), unit.size(1), unit.size(1), blocks=4), []
    for block in (unit,) if step >= unit.size(1) else unit.split(step, dim=1):
        above = F.elu(torch.bmm(block, unit.transpose(1, 2)).sub_(margin), alpha)
        rows.append(above.mean(dim=2) if mask is None else (above * mask[:, None]).sum(dim=2))
    total = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    if mask is None:
        return total
    return (total / mask.sum(dim=1, keepdim=True).clamp_min(1)).masked_fill(~mask, -torch.inf)
