"""How well two tokens go together by several criteria at once: similarity, attention, size."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import as_type
from tokengraph.select.parts.graphs.halves import cosines, unit_rows

TINY = torch.finfo(torch.float32).tiny


def by_criteria(
    x: Tensor, received: Tensor, size: Tensor | None, tau: tuple[float, float, float], first: int, mask: Tensor | None
) -> Tensor:
    r"""Edges between alternating halves, the heavier the more alike, the less attended and the smaller both ends are.

    .. math:: W_{ij} = \Big(\frac{\cos(x_i, x_j) + 1}{2}\Big)^{1/t_1} (\hat a_i \hat a_j)^{1/t_2}
              (\hat z_i \hat z_j)^{1/t_3}, \qquad \hat a_i = \min_k a_k / a_i, \quad \hat z_i = \min_k s_k / s_i

    Args:
        x: What similarity is measured on, ``[B, N, C]``.
        received: a, the attention that each token receives, ``[B, N]``, in any unit.
        size: s, ``[B, N]``; ``None``: one each.
        tau: :math:`(t_1, t_2, t_3)`; 0 leaves a criterion out.
        first: Place of the first token of A, 0 or 1.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        ``[B, n_a, n_b]`` float32.
    """
    unit = unit_rows(x if mask is None else x.masked_fill(~mask[..., None], 0.0))
    weight = cosines(unit[:, first::2], unit[:, 1 - first :: 2], least=-1.0)
    weight = weight.add_(1.0).mul_(0.5) if tau[0] else torch.ones_like(weight)
    weight = weight if tau[0] in (0, 1) else weight.pow_(1.0 / tau[0])
    each = None
    for value, t in ((received, tau[1]), (size, tau[2])):
        if value is not None and t:
            value = as_type(value.detach(), torch.float32).clamp_min(TINY)
            least = value if mask is None else value.masked_fill(~mask, torch.inf)
            factor = (least.amin(dim=1, keepdim=True) / value).pow(1.0 / t)
            each = factor if each is None else each * factor
    if each is None:
        return weight
    return weight * each[:, first::2, None] * each[:, None, 1 - first :: 2]
