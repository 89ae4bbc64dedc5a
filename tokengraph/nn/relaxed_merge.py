"""DTEM's relaxed merging: in training tokens give shares of themselves to others, and the choice has gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST = 2.0**-23


class Relaxed(NamedTuple):
    """Tokens after a relaxed step.

    Args:
        x: ``[B, T, C]``: the class token, the active tokens by falling size, the others as they were.
        size: ``[B, T]`` likewise.
        active: How many in front may merge in the next step, the class token among them; a list where images differ.
        assign: Share of each token of A that went to each of B, ``[B, n_a, n_b]``.
        order: Which token each was before, ``[B, T]`` int64.
    """

    x: Tensor
    size: Tensor
    active: Any
    assign: Tensor
    order: Tensor


def relaxed_merge(
    x: Tensor,
    metric: Tensor,
    size: Tensor,
    r: int,
    *,
    active: int | None = None,
    neighbors: int = 3,
    tau: tuple[float, float] = (0.1, 0.1),
) -> Relaxed:
    r"""Merges r tokens' worth of mass between two alternating sets, differentiably; no token is removed.

    Of the first ``active`` tokens, 1, 3, 5, ... form A and 2, 4, 6, ... form B. By :func:`relaxed_pairs` a token a
    gives the share :math:`G_{ab}` of itself to b:

    .. math:: w'_b = w_b + \sum_a G_{ab} w_a, \qquad x'_b = \frac{w_b x_b + \sum_a G_{ab} w_a x_a}{w'_b}, \qquad
              w'_a = w_a \operatorname{clamp}(1 - \textstyle\sum_b G_{ab}, 0, 1)

    Then A and B are sorted together by falling size; the r lightest, which come last, take no part in later steps.
    Attention that weighs keys by size (``log w`` on their logits) hardly sees them.

    Args:
        x: Tokens with one class token in front, ``[B, T, C]``.
        metric: What similarity is measured on, ``[B, T, D]``; gradients reach it.
        size: w, ``[B, T]``.
        r: Tokens to merge; at most those of A.
        active: How many tokens in front may merge, the class token among them; ``None``: all.
        neighbors: Edges that each token of A has, to its most similar ones of B.
        tau: Temperatures of similarity and of the choice.

    Returns:
        The tokens, their sizes, and how many of them are active next.

    Raises:
        ValueError: For shapes that do not fit, or numbers out of range.

    Cost: ``O(B T^2 (D / 4 + r))`` time, ``r`` maps ``[B, n_a, n_b]`` for backward.

    Source: Lee and Hong, *Learning to Merge Tokens via Decoupled Embedding for Efficient Vision Transformers* (DTEM),
    NeurIPS 2024, and its code. Differs: zero vectors have cosine 0, ties go to the lower index, r is at most ``n_a``.
    In evaluation DTEM is :func:`tokengraph.tome` on the learned metric.
    """
    tokens = x.size(1)
    active = tokens if active is None else active
    if metric.shape[:2] != x.shape[:2] or size.shape != x.shape[:2]:
        got = f"{list(metric.shape[:2])}, {list(size.shape)}"
        raise ValueError(f"Expected metric and size of [B, T] = {list(x.shape[:2])} (got {got}).")
    if not 0 <= active <= tokens or r < 0:
        raise ValueError(f"Expected 0 <= active <= T={tokens} and r >= 0 (got active={active}, r={r}).")
    a, b = slice(1, active, 2), slice(2, active, 2)
    r = min(r, metric[:, a].size(1)) if metric[:, b].size(1) else 0
    share = relaxed_pairs(metric[:, a], metric[:, b], r, neighbors=neighbors, tau=tau)
    weight = size.float()
    given = share * weight[:, a, None]  # [B, n_a, n_b]
    size_b = weight[:, b] + given.sum(dim=1)
    rows_b = (weight[:, b, None] * x[:, b].float() + given.transpose(1, 2) @ x[:, a].float()) / size_b[..., None]
    size_a = weight[:, a] * _clamp(1.0 - share.sum(dim=2))
    sizes, rows = torch.cat([size_a, size_b], dim=1), torch.cat([x[:, a], rows_b.to(x.dtype)], dim=1)
    order = sizes.argsort(dim=1, descending=True, stable=True)
    rows = rows.gather(1, order[..., None].expand_as(rows))
    x = torch.cat([x[:, :1], rows, x[:, max(active, 1) :]], dim=1)
    size = torch.cat([weight[:, :1], sizes.gather(1, order), weight[:, max(active, 1) :]], dim=1)
    place = torch.arange(tokens, device=x.device).expand(x.size(0), -1)
    order = torch.cat([place[:, a], place[:, b]], dim=1).gather(1, order)
    order = torch.cat([place[:, :1], order, place[:, max(active, 1) :]], dim=1)
    return Relaxed(x, size, active - r, share, order)


def relaxed_pairs(a: Tensor, b: Tensor, r: int, *, neighbors: int = 3, tau: tuple[float, float] = (0.1, 0.1)) -> Tensor:
    r"""Draws r edges from A to B one after another, each as a softmax over all that are left.

    With :math:`l` the cosines by :math:`\tau_1`, of each row its ``neighbors`` largest, r times:

    .. math:: p = \operatorname{softmax}(l / \tau_2), \qquad G \leftarrow G + p, \qquad
              l_a \leftarrow l_a + \log\max(1 - \textstyle\sum_b p_{ab}, 2^{-23})

    At last rows whose sum exceeds one are divided by it; the divisor carries no gradient.

    Args:
        a: ``[B, n_a, D]``.
        b: ``[B, n_b, D]``.
        r: Edges to draw.
        neighbors: Edges that each token of A has.
        tau: :math:`(\tau_1, \tau_2)`, above 0.

    Returns:
        G, ``[B, n_a, n_b]`` float32, computed in float64; it sums to at most r.
    """
    if neighbors < 1 or not min(tau) > 0:
        raise ValueError(f"Expected neighbors >= 1 and temperatures above 0 (got neighbors={neighbors}, tau={tau}).")
    if r == 0 or a.size(1) == 0 or b.size(1) == 0:
        return a.new_zeros(a.size(0), a.size(1), b.size(1), dtype=torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        same = _unit(a) @ _unit(b).transpose(1, 2)
        order = same.detach().argsort(dim=2, descending=True, stable=True)
        there = torch.zeros_like(same, dtype=torch.bool).scatter(2, order[..., :neighbors], True)
        logits = torch.where(there, same / tau[0], -torch.inf)
        share = torch.zeros_like(same)  # in float64: temperatures multiply the rounding of cosines by 100
        for _ in range(r):
            p = (logits / tau[1]).flatten(1).softmax(dim=1).view_as(logits)
            share = share + p
            logits = logits + (1.0 - p.sum(dim=2, keepdim=True)).clamp_min(LEAST).log()
        return (share / share.sum(dim=2, keepdim=True).detach().clamp_min(1.0)).float()


def _unit(x: Tensor) -> Tensor:
    x = x.double()
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def _clamp(x: Tensor) -> Tensor:
    """Between 0 and 1, with the gradient of the identity."""
    return x + (x.detach().clamp(0.0, 1.0) - x.detach())
