"""TPS's squeezing in training: pruned tokens give their features away, and every token keeps its place."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # added to lengths


def squeeze(x: Tensor, keep: Tensor, pruned: Tensor, *, tau: float = 1.0, official: bool = False) -> Tensor:
    r"""Averages each token that is pruned now into the most similar token that stays.

    .. math:: x_j \leftarrow \frac{x_j + \sum_i p_i w_{ij} x_i}{1 + \sum_i p_i w_{ij}}, \quad
              w_{ij} = \exp(\cos(x_i, x_j) / \tau - 1) \;\text{if j is the host of i, else } 0

    Rows of tokens that do not stay do not change.

    Args:
        x: Features, ``[B, N, C]``.
        keep: Cumulative decisions behind this stage, ``[B, N]``; tokens above 0.5 stay. It gets no gradient.
        pruned: 1 for tokens that this stage prunes, ``[B, N]``. As in the code its gradient is that of
            :math:`p \, e^{p c}`, which for 0 and 1 has the values of :math:`p \, e^{c}`.
        tau: Temperature.
        official: Every host of the highest similarity gets the guest, not only the first.

    Returns:
        ``[B, N, C]`` in the dtype of ``x``. An image of which no token stays does not change.

    Cost: ``O(B N^2 C)``, two ``[B, N, N]`` matrices.

    Source: Wei et al., *Joint Token Pruning and Squeezing*, CVPR 2023, and its code. Differs: ties.
    """
    if keep.shape != x.shape[:2] or pruned.shape != x.shape[:2]:
        raise ValueError(
            f"Expected keep and pruned of shape {list(x.shape[:2])} (got {list(keep.shape)}, {list(pruned.shape)})."
        )
    with torch.autocast(x.device.type, enabled=False):
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        unit = rows / (torch.linalg.vector_norm(rows, dim=2, keepdim=True) + EPS)
        edges = torch.matmul(unit, unit.transpose(1, 2))
        stays = keep.detach() > 0.5
        barred = edges.detach().masked_fill(~stays[:, None], -torch.inf)
        barred.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        best = barred.amax(dim=2, keepdim=True)
        if official:
            host = barred == best
        else:
            host = torch.zeros_like(barred, dtype=torch.bool).scatter_(2, barred.argmax(dim=2, keepdim=True), True)
        host = host & (best > -torch.inf)
        gone = pruned.to(rows.dtype)[..., None]
        share = torch.where(host, (gone * edges / tau - 1).exp() * gone, 0.0)
        share = share.transpose(1, 2)  # [B, host, guest]
        mixed = (rows + torch.matmul(share, rows)) / (1 + share.sum(dim=2, keepdim=True))
        return torch.where(stays[..., None], mixed, rows).to(x.dtype)
