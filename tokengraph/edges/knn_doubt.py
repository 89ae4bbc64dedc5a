"""Finds rows of a product search in which rounding may have changed a result, and recomputes them by differences."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import LARGE, LOST, pair_distance, product_rounding

SMALL = 1e-30  # smaller squares lose digits in float32 or underflow


class Doubt:
    """Error bounds for distances by products within images ``[B, N, C]``.

    Products give ``d^2`` within ``rounding * (|x_i| + |x_j|)^2``, and ``|x_j|`` is at most ``|x_i| + d`` and at
    most the largest norm of the image.

    Args:
        x: Tokens after the origin was subtracted, ``[B, N, C]``.
        half: ``|x|^2 / 2``, ``[B, N]``.
    """

    def __init__(self, x: Tensor, half: Tensor) -> None:
        self.rounding = product_rounding(x)
        self.half = half
        self.largest = half.amax(dim=1, keepdim=True)
        overflow = ~(self.largest < 0.5 * LARGE)
        self.overflow = overflow if bool(overflow.any()) else None  # [B, 1]
        self.hidden = underflow(x, half)  # [B, 1], usually None

    def rows(self, value: Tensor, start: int, loop: bool) -> tuple[Tensor, Tensor]:
        """Returns the uncertain rows, ``[B, R]`` bool, and the error bound of ``d^2`` in each row, ``[B, R]``.

        A row is certain if each neighbour differs from the next one by more than both errors, and the first one is not
        so near that ``d^2`` itself loses digits.

        Args:
            value: The lowest scores of each row, ascending, ``[B, R, k + 1]``: ``d^2 / 2 - |x_i|^2 / 2``; -inf for the
                token itself, inf for a missing neighbour.
            start: The first token of the rows.
            loop: Whether each token is its own first neighbour.
        """
        half = self.half[:, start : start + value.size(1)]
        # (|x_i| + |x_j|)^2 / 2, with the |x_j| of the last neighbour.
        reach = torch.minimum((value[..., -1] + half).clamp_min_(0.0).sqrt_().add_(half.sqrt()), self.largest.sqrt())
        error = reach.add_(half.sqrt()).square_().mul_(2.0 * self.rounding)
        if self.hidden is not None:
            error = error + self.hidden
        unsure = (value[..., 1:] - value[..., :-1] < error[..., None]).any(dim=2)
        if value.size(2) > loop:
            near = value[..., int(loop)] + half
            unsure |= (error > 2.0 * LOST * near) & (near < torch.inf)
        return unsure if self.overflow is None else unsure | self.overflow, error

    def places(self, value: Tensor, half: Tensor, error: Tensor) -> Tensor:
        """Returns the uncertain places of listed rows, bool; ``value [F, k + 1]``, ``half`` and ``error [F, 1]``."""
        unsure = (error > 2.0 * LOST * (value + half)) & (value.abs() < torch.inf)
        gap = value[:, 1:] - value[:, :-1] < error
        unsure[:, 1:] |= gap
        unsure[:, :-1] |= gap
        return unsure

    def limit(self, far: Tensor, half: Tensor, error: Tensor) -> Tensor:
        """Returns the ``d^2`` by products above which no token can be nearer than the k-th, whose ``d^2`` is ``far``.

        ``far``, ``half``, ``error`` and the result are ``[F, 1]``. It follows from
        ``(2 |x_i| + d)^2 <= 8 |x_i|^2 + 2 d^2``.
        """
        return (far + error + half * (16.0 * self.rounding)) * (1.0 + 4.0 * self.rounding)


def underflow(x: Tensor, half: Tensor) -> Tensor | None:
    """Bounds the error by underflow in each image, ``[B, 1]``; ``None`` if all small rows are exact zeros."""
    small = half < SMALL
    if int(small.sum()) <= x.size(0):  # only the origin of each image
        return None
    image, token = small.nonzero(as_tuple=True)
    hides = x[image, token].ne(0).any(dim=1)
    if not bool(hides.any()):
        return None
    out = half.new_zeros(x.size(0), 1)
    out[image[hides]] = SMALL
    return out


def search_again(
    x: Tensor,
    mask: Tensor | None,
    squared: Tensor,
    nearest: Tensor,
    unsure: Tensor,
    limit: Tensor,
    overflow: Tensor | None,
    image: Tensor,
    token: Tensor,
    k: int,
    loop: bool,
) -> tuple[Tensor, Tensor]:
    """Finds the k nearest of listed tokens again, by differences wherever products cannot exclude a token.

    Args:
        x: Tokens before the origin was subtracted, ``[B, N, C]``.
        mask: True where there is a token, ``[B, N]``.
        squared: Squared distances of the rows by products, ``[F, N]``.
        nearest: The k nearest by products, ``[F, k]``.
        unsure: True where a neighbour is uncertain, ``[F, k]``.
        limit: The ``squared`` above which a token is excluded, ``[F, 1]``.
        overflow: Images whose squares overflow, ``[B, 1]``.
        image: Image of each row, ``[F]``.
        token: Token of each row, ``[F]``.
        k: Neighbours per token.
        loop: Whether a token is its own first neighbour.

    Returns:
        ``index [F, k]`` within the image and Euclidean ``distance [F, k]``, inf for missing neighbours.

    Raises:
        ValueError: If a distance exceeds the dtype of ``x``.
    """
    tokens, at = x.size(1), torch.arange(token.numel(), device=x.device)
    candidate = ~(squared > limit)
    candidate.scatter_(1, nearest, unsure)  # certain neighbours need no new distance
    if overflow is not None:
        candidate |= overflow[image]
    candidate[at, token] = False
    if mask is not None:
        candidate &= mask[image]
    row, column = candidate.nonzero(as_tuple=True)
    first = image[row] * tokens
    exact = pair_distance(x.flatten(0, 1), first + token[row], first + column)
    table = exact.new_full(candidate.shape, torch.inf)
    table.scatter_(1, nearest, squared.gather(1, nearest).to(exact.dtype))
    table[row, column] = exact
    table[at, token] = -1.0 if loop else torch.inf
    if mask is not None:
        table = table.masked_fill(~mask[image], torch.inf)
    value, index = table.sort(dim=1, stable=True)
    index, distance = index[:, :k], value[:, :k].clamp_min(0.0).sqrt()
    narrow = distance.to(x.dtype)
    if overflow is None:
        return index, narrow
    beyond = (narrow == torch.inf) & (distance < torch.inf)
    if bool(beyond.any()):
        most = float(distance[beyond].max())
        raise ValueError(f"Expected distances that fit {x.dtype} (got {most:.3g}). Scale the tokens, or pass float64.")
    return index, narrow
