"""Finds rows of a product search in which rounding may have changed a result, and recomputes them by differences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.edges.distance import LARGE, LOST, pair_distance, product_rounding

SMALL = 1e-30  # smaller squares lose digits in float32 or underflow


@dataclass
class Rows:
    """What rounding may have done to the rows of a block of R tokens an image.

    Args:
        doubted: Rows that need a second look, ``[B, R]`` bool.
        error: The bound for ``d^2`` up to the last place, ``[B, R]``.
        tied: Whether any row has equal values.
    """

    doubted: Tensor
    error: Tensor
    tied: bool


@dataclass(frozen=True)
class Listed:
    """F rows of a product search to look at again.

    Args:
        image: Image of each row, ``[F]``.
        token: Token of each row, ``[F]``.
        score: ``d^2 / 2 - |x_i|^2 / 2`` with every token of the image, ``[F, N]``.
        value: The lowest of it, ascending, ``[F, k + 1]``.
        nearest: Where the first k are, ``[F, k]``.
        error: The bound for ``d^2``, ``[F, 1]``.
    """

    image: Tensor
    token: Tensor
    score: Tensor
    value: Tensor
    nearest: Tensor
    error: Tensor


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
        self.half, self.root = half, half.sqrt()
        self.largest = self.root.amax(dim=1, keepdim=True)
        overflow = ~(self.largest < (0.5 * LARGE) ** 0.5)
        self.overflow = overflow if bool(overflow.any()) else None  # [B, 1]
        self.hidden = underflow(x, half)  # [B, 1], usually None

    def rows(self, value: Tensor, start: int, *, loop: bool, empty: bool) -> Rows:
        """Which rows need a second look.

        A row is certain if each neighbour differs from the next one by more than both errors, and the first one is not
        so near that ``d^2`` itself loses digits.

        Args:
            value: The lowest scores of each row, ascending, ``[B, R, k + 1]``: ``d^2 / 2 - |x_i|^2 / 2``; -inf for the
                token itself, inf for a missing neighbour.
            start: The first token of the rows.
            loop: Whether each token is its own first neighbour.
            empty: Whether rows may have places without a token.
        """
        half, root = (t[:, start : start + value.size(1)] for t in (self.half, self.root))
        # (|x_i| + |x_j|) / sqrt(2), with |x_j| as of the last place.
        reach = (value[..., -1] + half).clamp_min_(0.0).sqrt_().add_(root)
        error = torch.minimum(reach, self.largest).add_(root).square_().mul_(2.0 * self.rounding)
        if self.hidden is not None:
            error = error + self.hidden
        if value.size(2) == 1:
            return Rows(torch.zeros_like(error, dtype=torch.bool), error, tied=False)
        gap = value[..., 1:] - value[..., :-1]
        if empty or self.overflow is not None:
            gap.nan_to_num_(nan=torch.inf, posinf=torch.inf)  # between two places without a token
        gap = gap.amin(dim=2)
        doubted = (gap < error).logical_or_(error > (value[..., int(loop)] + half).mul_(2.0 * LOST))
        if self.overflow is not None:
            doubted |= self.overflow
        return Rows(doubted, error, tied=bool((gap <= 0).any()))

    def search_again(self, rows: Listed, x: Tensor, mask: Tensor | None, k: int, loop: bool) -> tuple[Tensor, Tensor]:
        """The k nearest of listed tokens, differences taken wherever products cannot rule a token out.

        Args:
            rows: The rows.
            x: The original tokens, ``[B, N, C]``.
            mask: True where there is a token, ``[B, N]``.
            k: Neighbours a token.
            loop: Whether a token is its own first neighbour.

        Returns:
            ``index [F, k]`` within the image and Euclidean ``distance [F, k]``, inf where there are too few.

        Raises:
            ValueError: If a distance does not fit the dtype of ``x``.
        """
        image, own = rows.image, rows.token[:, None]
        first = image * x.size(1)
        half = self.half.flatten().index_select(0, first + rows.token)[:, None]
        squared = torch.add(half, rows.value).mul_(2.0)
        candidate = rows.score <= self._limit(squared[:, k - 1 : k], half, rows.error)
        candidate.scatter_(1, rows.nearest, self._places(squared, rows)[:, :k])  # a certain place needs no second look
        if self.overflow is not None:
            candidate |= self.overflow[image]
        candidate.scatter_(1, own, False)
        if mask is not None:
            candidate &= mask[image]
        row, column = candidate.nonzero(as_tuple=True)
        first = first.index_select(0, row)
        exact = pair_distance(x.flatten(0, 1), first + rows.token.index_select(0, row), first + column)
        table = exact.new_full(candidate.shape, torch.inf)
        table.scatter_(1, rows.nearest, squared[:, :k].clamp_min_(0.0).to(exact.dtype))
        table[row, column] = exact
        table.scatter_(1, own, -1.0 if loop else torch.inf)
        if mask is not None:
            table = table.masked_fill(~mask[image], torch.inf)
        value, index = table.sort(dim=1, stable=True)
        distance = value[:, :k].clamp_min(0.0).sqrt()
        narrow = distance.to(x.dtype)
        if self.overflow is not None:
            _check_fits(distance, narrow)
        return index[:, :k], narrow

    def _places(self, squared: Tensor, rows: Listed) -> Tensor:
        """Which places are in doubt, ``[F, k + 1]``; ``squared`` are their ``d^2`` by products."""
        unsure = rows.error > squared * LOST
        gap = rows.value[:, 1:] - rows.value[:, :-1] < rows.error
        unsure[:, 1:] |= gap
        unsure[:, :-1] |= gap
        return unsure

    def _limit(self, far: Tensor, half: Tensor, error: Tensor) -> Tensor:
        """The score by products beyond which no token can be nearer than the k-th, whose ``d^2`` is ``far [F, 1]``.

        ``far``, ``half``, ``error`` and the result are ``[F, 1]``. It follows from
        ``(2 |x_i| + d)^2 <= 8 |x_i|^2 + 2 d^2``.
        """
        far = (far + error + half * (16.0 * self.rounding)) * (1.0 + 4.0 * self.rounding)
        return 0.5 * far - half


def _check_fits(distance: Tensor, narrow: Tensor) -> None:
    """Raises where a ``distance`` in float64 became infinite in the dtype of the tokens."""
    beyond = (narrow == torch.inf) & (distance < torch.inf)
    if bool(beyond.any()):
        most = float(distance[beyond].max())
        raise ValueError(
            f"Expected distances that fit {narrow.dtype} (got {most:.3g}). Scale the tokens, or pass float64."
        )


def underflow(x: Tensor, half: Tensor) -> Tensor | None:
    """Bounds the error by underflow in each image, ``[B, 1]``; ``None`` if all small rows are exact zeros."""
    small = half < SMALL
    if int(torch.count_nonzero(small)) <= x.size(0):  # each image's origin alone
        return None
    image, token = small.nonzero(as_tuple=True)
    hides = x[image, token].ne(0).any(dim=1)
    if not bool(hides.any()):
        return None
    out = half.new_zeros(x.size(0), 1)
    out[image[hides]] = SMALL
    return out
