"""Rows of a product search in which rounding may have changed a neighbour or a weight, by differences."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import LARGE, LOST, pair_distance, product_rounding

SMALL = 1e-30  # below, squares of float32 lose digits or vanish


class Doubt:
    """How far the products of images ``[B, N, C]`` can be trusted.

    Products give ``d^2`` within ``rounding * (|x_i| + |x_j|)^2``, and ``|x_j|`` is at most ``|x_i| + d`` and at
    most the largest norm of the image.

    Args:
        x: Tokens after the origin was moved, ``[B, N, C]``.
        half: ``|x|^2 / 2``, ``[B, N]``.
    """

    def __init__(self, x: Tensor, half: Tensor) -> None:
        self.rounding = product_rounding(x)
        self.half = half
        self.largest = half.amax(dim=1, keepdim=True)
        overflow = ~(self.largest < 0.5 * LARGE)
        self.overflow = overflow if bool(overflow.any()) else None  # [B, 1]
        self.hidden = underflow(x, half)  # [B, 1], rarely there

    def rows(self, value: Tensor, start: int, loop: bool) -> tuple[Tensor, Tensor]:
        """Which rows need a second look, ``[B, R]`` bool, and the bound for ``d^2`` up to the last place, ``[B, R]``.

        A row is certain when each of its nearest is further from the next one than both errors, and the first is not
        so near that ``d^2`` itself loses digits.

        Args:
            value: The lowest scores of each row, ascending, ``[B, R, k + 1]``: ``d^2 / 2 - |x_i|^2 / 2``; -inf for the
                token itself, inf for none.
            start: The first token of the rows.
            loop: Whether each token is its own first neighbour.
        """
        half = self.half[:, start : start + value.size(1)]
        # (|x_i| + |x_j|)^2 / 2, with |x_j| as of the last place.
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
        """Which places of listed rows are in doubt: ``value [F, k + 1]``, ``half`` and ``error`` ``[F, 1]``."""
        unsure = (error > 2.0 * LOST * (value + half)) & (value.abs() < torch.inf)
        gap = value[:, 1:] - value[:, :-1] < error
        unsure[:, 1:] |= gap
        unsure[:, :-1] |= gap
        return unsure

    def limit(self, far: Tensor, half: Tensor, error: Tensor) -> Tensor:
        """The ``d^2`` by products beyond which no token can be nearer than the k-th, at ``far [F, 1]``.

        From ``(2 |x_i| + d)^2 <= 8 |x_i|^2 + 2 d^2``.
        """
        return (far + error + half * (16.0 * self.rounding)) * (1.0 + 4.0 * self.rounding)


def underflow(x: Tensor, half: Tensor) -> Tensor | None:
    """What vanishing squares may hide in each image, ``[B, 1]``; ``None`` where small rows are exact zeros."""
    small = half < SMALL
    if int(small.sum()) <= x.size(0):  # each image's origin alone
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
    """The k nearest of listed tokens, differences taken wherever products cannot rule a token out.

    Args:
        x: Tokens as they came, ``[B, N, C]``.
        mask: True where there is a token, ``[B, N]``.
        squared: Squared distances of the rows by products, ``[F, N]``.
        nearest: The k nearest by products, ``[F, k]``.
        unsure: Which of them are in doubt, ``[F, k]``.
        limit: What ``squared`` must exceed to be ruled out, ``[F, 1]``.
        overflow: Images whose squares overflow, ``[B, 1]``.
        image: Image of each row, ``[F]``.
        token: Token of each row, ``[F]``.
        k: Neighbours a token.
        loop: Whether a token is its own first neighbour.

    Returns:
        ``index [F, k]`` within the image and Euclidean ``distance [F, k]``, inf where there are too few.

    Raises:
        ValueError: If a distance does not fit the dtype of ``x``.
    """
    tokens, at = x.size(1), torch.arange(token.numel(), device=x.device)
    candidate = ~(squared > limit)
    candidate.scatter_(1, nearest, unsure)  # a certain place needs no second look
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
