"""Gradients of attention whose edges are weighted by keep decisions, computed a few heads at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokengraph.flat.segment import wide

CAP = 1e6  # upper bound on the weight of a dropped key's edge, relative to the best allowed key
CACHE = 1 << 20  # bytes of a piece of the map on a CPU, so that it stays in the cache
MEMORY = 1 << 28  # bytes of a piece of the map on a GPU


def attention_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, out: Tensor, scale: float, cap: float = CAP
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Computes the gradients of q, k, v and keep.

    With :math:`z_i = \sum_k E_{ik} G_{ik}` and signals :math:`r_{ij} = E_{ij} (g_i v_j - g_i o_i) / z_i`:
    :math:`\partial d_j = \sum_{i \ne j} r_{ij}`, whether j is kept or not; :math:`\partial P = r G`; the map is
    :math:`E G / z`. G has d in its columns and 1 on its diagonal.

    Args:
        grad: g, the gradient of the output, ``[B, H, N, D]``.
        q: Queries, ``[B, H, N, D]``.
        k: Keys, ``[B, H, N, D]``.
        v: Values, ``[B, H, N, D]``.
        keep: d, ``[B, N]``.
        out: o, the output, ``[B, H, N, D]``.
        scale: Factor on the scores.
        cap: Upper bound on the weight of a dropped key's edge.

    Returns:
        The gradients of ``q``, ``k``, ``v`` and ``keep``, in their shapes.

    Cost: 5 products of ``B H N^2 D``; memory for three pieces of the map at a time.
    """
    heads, wanted = q.size(1), (q, k, v, keep)
    grad, q, k, v, out = (t.to(wide(t)).flatten(0, 1) for t in (grad, q, k, v, out))
    q = q * scale
    keep = keep.to(q.dtype).repeat_interleave(heads, dim=0)[:, None, :]
    delta = (grad * out).sum(dim=-1, keepdim=True)
    dq, dk, dv, dkeep = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(keep[:, 0])
    for part in _parts(q):
        raw = _exponentials(q[part], k[part], keep[part], cap)
        edges = _on_edges(raw, keep[part])
        total = edges.sum(dim=2, keepdim=True)
        # Divides rows of width D, not rows of the map.
        g = grad[part] / total
        dv[part] = torch.bmm(edges.transpose(1, 2), g)
        signal = torch.baddbmm(delta[part] / total, g, v[part].transpose(1, 2), beta=-1).mul_(raw)
        dkeep[part] = signal.sum(dim=1) - signal.diagonal(dim1=1, dim2=2)
        signal = _on_edges(signal, keep[part])
        dq[part] = torch.bmm(signal, k[part]).mul_(scale)
        dk[part] = torch.bmm(signal.transpose(1, 2), q[part])
    results = [t.unflatten(0, (-1, heads)) for t in (dq, dk, dv, dkeep)]
    results[3] = results[3].sum(dim=1)
    dq, dk, dv, dkeep = (r.to(t.dtype) for r, t in zip(results, wanted, strict=True))
    return dq, dk, dv, dkeep


def _parts(q: Tensor) -> list[slice]:
    """Cuts the heads of all images ``[B*H, N, D]`` into pieces of at least one head."""
    rows, tokens = q.shape[:2]
    limit = MEMORY if q.is_cuda else CACHE
    # A few heads at once keep all cores of a CPU busy.
    step = max(1 if q.is_cuda else 3, limit // max(1, tokens * tokens * q.element_size()))
    return [slice(start, start + step) for start in range(0, max(rows, 1), step)]


def _exponentials(q: Tensor, k: Tensor, keep: Tensor, cap: float) -> Tensor:
    """Computes E of some heads, dropped keys included, ``[b, N, N]``."""
    scores = torch.bmm(q, k.transpose(1, 2))
    allowed = scores + torch.where(keep > 0, 0.0, -torch.inf).to(scores.dtype)
    allowed.diagonal(dim1=1, dim2=2).copy_(scores.diagonal(dim1=1, dim2=2))
    return scores.sub_(allowed.amax(dim=2, keepdim=True)).clamp_max_(math.log(cap)).exp_()


def _on_edges(values: Tensor, keep: Tensor) -> Tensor:
    """Computes ``values * G`` for ``values [b, N, N]`` and ``keep [b, 1, N]``."""
    out = values * keep
    out.diagonal(dim1=1, dim2=2).copy_(values.diagonal(dim1=1, dim2=2))
    return out
