"""Rows of a product search in which rounding may have changed a neighbour or a weight: searched again by differences."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.edges.distance import LARGE, LOST, pair_distance, product_rounding

SMALL = 1e-30  # below, squares of float32 lose digits or vanish


class Doubt:
    """How far the products of images ``[B, N, C]`` can be trusted.

    Products give ``d^2`` within ``rounding * (|x_i| + |x_j|)^2``, and ``|x_j|`` is at most ``|x_i| + d`` and at most the
    largest norm of the image.

    Args:
        x: Tokens after the origin was moved, ``[B, N, C]``.
        half: ``|x|^2 / 2``, ``[B, N]``.
    """

    def __init__(self, x: Tensor, half: Tensor) -> None:
        self.rounding = product_rounding(x)
        self.norm = (2.0 * half).sqrt_()
        self.largest = self.norm.amax(dim=1, keepdim=True)
        self.overflow = ~(self.largest < LARGE**0.5)
        self.hidden = underflow(x, half)

    def error(self, squared: Tensor, norm: Tensor, largest: Tensor, hidden: Tensor) -> Tensor:
        """The bound for squared distances of tokens with ``norm``; all broadcast."""
        reach = torch.minimum(squared.sqrt().add_(norm), largest).add_(norm)
        return reach.square_().mul_(self.rounding).add_(hidden)

    def places(self, value: Tensor, half: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Which of the nearest a row cannot vouch for: ``[B, R, k + 1]`` bool, and which rows have any, ``[B, R]``.

        A place is certain when it is further from its neighbours in the ranking than both errors, and not so near that
        ``d^2`` itself loses digits.

        Args:
            value: The lowest scores of each row, ascending, ``[B, R, k + 1]``: ``d^2 / 2 - |x_i|^2 / 2``; -inf for the
                token itself, inf for none.
            half: ``|x|^2 / 2`` of the rows, ``[B, R, 1]``.
            start: The first token of the rows.
        """
        squared = (value + half).mul_(2.0).clamp_min_(0.0)
        norm = self.norm[:, start : start + value.size(1), None]
        error = self.error(squared, norm, self.largest[..., None], self.hidden[:, None, None])
        gap = squared[..., 1:] - squared[..., :-1] < error[..., 1:] + error[..., :-1]
        unsure = (error > LOST * squared) & (value.abs() < torch.inf)
        unsure[..., 1:] |= gap
        unsure[..., :-1] |= gap
        return unsure, unsure.any(dim=2) | self.overflow


def underflow(x: Tensor, half: Tensor) -> Tensor:
    """What vanishing squares may hide in each image, ``[B]``; 0 where all small rows are zeros, and so exact."""
    small = half < SMALL
    if int(small.sum()) <= x.size(0):  # each image's origin alone
        return half.new_zeros(x.size(0))
    image, token = small.nonzero(as_tuple=True)
    hides = x[image, token].ne(0).any(dim=1)
    out = half.new_zeros(x.size(0))
    out[image[hides]] = SMALL
    return out


def search_again(
    x: Tensor,
    mask: Tensor | None,
    squared: Tensor,
    nearest: Tensor,
    unsure: Tensor,
    doubt: Doubt,
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
        doubt: The bounds.
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
    norm, largest, hidden = doubt.norm[image, token, None], doubt.largest[image], doubt.hidden[image, None]
    error = doubt.error(squared, norm, largest, hidden)
    far = squared.gather(1, nearest[:, -1:])
    limit = far + doubt.error(far, norm, largest, hidden)
    candidate = ~(squared - error > limit)
    candidate.scatter_(1, nearest, unsure)  # a certain place needs no second look
    candidate |= doubt.overflow[image]
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
    if bool((narrow.isinf() & distance.isfinite()).any()):
        most = float(distance[distance.isfinite()].max())
        raise ValueError(f"Expected distances that fit {x.dtype} (got {most:.3g}). Scale the tokens, or pass float64.")
    return index, narrow
