"""Squared Euclidean distances by matrix products; a well-chosen origin keeps them accurate."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.looks import may_look
from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import counting, starts

FEW = 2**17  # numbers of an image up to which a copy costs less than more operations
PIECE = 2**20  # elements gathered at a time
LOST = 1e-4  # relative rounding error from which a squared distance by products is recomputed by differences
BLUR = 0.05  # rounding error of logits from which a softmax of distances is computed by differences
LARGE = 1e36  # larger squares may overflow float32 when they are added


def origin(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns each image's token nearest to its mean, ``[B, 1, C]``, to subtract before distances by products.

    Distances stay the same, and ``|a|^2 + |b|^2 - 2ab`` loses far fewer digits. A token serves better than the mean
    itself: whole numbers stay whole, and equal tokens become exact zeros, so that their ties stay exact.

    Args:
        x: ``[B, N, C]``, ``N >= 1``; where ``mask [B, N]`` is False it must be zero.
        mask: True where there is a token.

    Cost: three passes over ``x``; no copy of it, unless images are small, where fewer operations count more.
    """
    if mask is None and x.size(1) * x.size(2) <= FEW:
        return most_central(x)
    if mask is None:
        mean = x.mean(dim=1, keepdim=True)
    else:
        mean = x.sum(dim=1, keepdim=True) / mask.sum(dim=1).clamp_min(1)[:, None, None]
    gap = torch.linalg.vector_norm(x, dim=-1).square() - 2.0 * torch.matmul(x, mean.transpose(1, 2)).squeeze(-1)
    if mask is not None:
        gap = gap.masked_fill(~mask, torch.inf)
    nearest = gap.argmin(dim=1)  # of |x - mean|^2 - |mean|^2
    return x.gather(1, nearest[:, None, None].expand(-1, 1, x.size(2)))


def near_origin(x: Tensor) -> Tensor:
    """Approximates :func:`origin` from about 32 tokens of each image ``[B, N, C]``: as accurate, and cheaper."""
    if x.size(1) == 0:
        return x.new_zeros(x.size(0), 1, x.size(2))
    return most_central(x[:, :: max(1, x.size(1) // 32)])


def most_central(some: Tensor) -> Tensor:
    """Returns the token nearest to the mean of a few tokens ``[B, n, C]``, n >= 1: ``[B, 1, C]``. Cost: a copy."""
    gap = torch.linalg.vector_norm(some - some.mean(dim=1, keepdim=True), dim=-1)
    return some.gather(1, gap.argmin(dim=1)[:, None, None].expand(-1, 1, some.size(2)))


def recentre(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Subtracts its :func:`origin` from ``x [B, N, C]``; in float32 or wider, zero where ``mask [B, N]`` is False."""
    x = as_type(x, torch.promote_types(x.dtype, torch.float32))
    if x.size(1) == 0:
        return x
    if mask is None:
        return x - origin(x)
    x = torch.where(mask[..., None], x, 0.0)
    return torch.where(mask[..., None], x - origin(x, mask), 0.0)


def squared_norm(x: Tensor) -> Tensor:
    """Computes ``|x|^2`` along the last axis. It is exact for whole numbers; the square of a norm is not."""
    return (x * x).sum(dim=-1)


def squared_distance(a: Tensor, b: Tensor, a_norm: Tensor, b_norm: Tensor) -> Tensor:
    """Computes ``|a_i - b_j|^2`` of ``a [B, Q, C]`` and ``b [B, J, C]`` by products: ``[B, Q, J]``, at least 0.

    ``a_norm [B, Q]`` and ``b_norm [B, J]`` are the squared norms.

    Cost: one batched product and one pass; ``B Q J`` floats.
    """
    product = torch.baddbmm(b_norm[:, None, :], a, b.transpose(1, 2), alpha=-2.0)
    return product.add_(a_norm[..., None]).clamp_min_(0.0)


def product_rounding(x: Tensor) -> float:
    """Bounds the error of ``|a - b|^2`` by products of rows like ``x [..., C]``, relative to ``(|a| + |b|)^2``.

    The rounding error of C terms grows like the root of C in practice, and the bound has some room: the largest errors
    measured were 2 epsilons at C = 16, 5 at 384 and 4 at 1024; the bound is 3.2, 5.8 and 7.8. It is larger if products
    may run in TF32 or bfloat16.
    """
    precise = torch.finfo(x.dtype).eps * (2.5 + x.size(-1) ** 0.5 / 6.0)
    if x.dtype != torch.float32 or (not x.is_cuda and torch.get_float32_matmul_precision() == "highest"):
        return precise
    if x.is_cuda and not torch.backends.cuda.matmul.allow_tf32:
        return precise
    return max(precise, 2.0**-10 if x.is_cuda else 2.0**-7)


def pair_distance(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Computes ``|x_i - x_j|^2`` of listed pairs by differences in float64, accurate for all float32 values.

    Args:
        x: Rows ``[M, C]``.
        first: Row i of each pair, ``[E]`` int64.
        second: Row j of each pair, ``[E]`` int64.

    Returns:
        ``[E]`` float64 (float32 if the device has no float64). Symmetric; equal rows have distance 0.

    Cost: three passes over two gathered rows for each pair, in pieces of ``PIECE`` elements.
    """
    wide = x.dtype if x.device.type == "mps" else torch.float64
    step = max(1, PIECE // max(1, x.size(1)))
    parts = [
        (as_type(x.index_select(0, i), wide) - as_type(x.index_select(0, j), wide)).square_().sum(dim=1)
        for i, j in zip(first.split(step), second.split(step), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else x.new_zeros(0, dtype=wide)


def mend_close(
    squared: Tensor,
    x: Tensor,
    norm: Tensor,
    start: int = 0,
    *,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Recomputes, by differences, the squared distances in which products have lost digits.

    Distances with a relative rounding error below ``LOST`` stay as they are.

    Args:
        squared: ``[B, R, J]`` by products. Changed in place.
        x: The tokens before the origin was subtracted, ``[B, N, C]``, float32 or wider.
        norm: ``|x|^2`` after the origin was subtracted, ``[B, N]``.
        start: The rows are tokens ``start : start + R``.
        rows: The tokens of the rows, ``[B, R]``; replaces ``start``.
        columns: The tokens of the columns of each row, ``[R, J]``; ``None``: all tokens in order.

    Returns:
        ``squared``.

    Cost: one pass over ``squared``, a host synchronisation on CUDA, and differences for the pairs that lost digits.
    """
    if rows is None:
        token = counting(norm.size(1), x.device)[start : start + squared.size(1)].expand(squared.shape[:2])
        own = norm[:, start : start + squared.size(1)]
    else:
        token, own = rows, norm.gather(1, rows)
    # (|x_i| + |x_j|)^2 <= 8 |x_i|^2 + 2 d^2; for close pairs it is about 4 |x_i|^2.
    limit = own * (4.0 * product_rounding(x) / LOST)
    small = may_look(norm) and norm.numel() > 0 and float(norm.amax()) < LARGE
    if not small:
        limit = torch.where(norm.amax(dim=1, keepdim=True) < LARGE, limit, torch.inf)
    if columns is None:
        squared.scatter_(2, token[..., None], torch.inf)
    doubt = squared.amin(dim=2) < limit if squared.size(2) else limit < 0
    if not small and squared.size(2):
        doubt = doubt.logical_or_(limit == torch.inf)
    doubted = doubt.flatten().nonzero().squeeze(1)
    piece = max(1, PIECE // max(1, squared.size(2)))
    parts = doubted.split(piece) if doubted.numel() else ()
    first = (token + starts(x.size(0), x.size(1), x.device)).flatten() if parts else doubted
    for row in parts:
        values = squared.flatten(0, 1).index_select(0, row)
        at, column = (~(values >= limit.flatten().index_select(0, row)[:, None])).nonzero().unbind(1)
        row_of = row.index_select(0, at)
        other = column if columns is None else columns[row_of % squared.size(1), column]
        ahead = row_of.div(squared.size(1), rounding_mode="floor") * x.size(1)
        found = pair_distance(x.flatten(0, 1), first.index_select(0, row_of), ahead + other)
        values[at, column] = as_type(found, values.dtype)
        squared.view(-1, squared.size(2)).index_copy_(0, row, values)
    if columns is None:
        squared.scatter_(2, token[..., None], 0.0)
    return squared


def products_blur(a: Tensor, b: Tensor, scale: float | Tensor) -> bool:
    """True if products of ``a [B, N, C]`` with ``b [B, M, C]`` may give ``scale * d^2`` with an error above ``BLUR``.

    Only eager CPU runs check; on CUDA, where reading values would block, and when compiled, it returns False.

    Cost: one pass over the rows.
    """
    if not may_look(a) or 0 in (a.numel(), b.numel()):
        return False
    with torch.no_grad():
        longest = [torch.linalg.vector_norm(t.detach(), dim=2).amax(dim=1) for t in (a, b)]
        squared = (longest[0] + longest[1]).square() * (scale.flatten() if isinstance(scale, Tensor) else scale)
        return not float(squared.max()) * product_rounding(a) < BLUR
