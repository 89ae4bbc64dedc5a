"""Assigns tokens without an anchor in their window, by a custom operator because their number depends on the data."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # makes distance decide between equal features
# Given, because torch 2.4 cannot read postponed annotations.
SCHEMA = (
    "(Tensor center, Tensor orphan, Tensor x, Tensor anchors, SymInt height, SymInt width, SymInt lam, float alpha, "
    "SymInt frames=1) -> Tensor"
)


def grid_squared(first: Tensor, second: Tensor, height: int, width: int) -> Tensor:
    """Returns squared distances in patch units between patch ids of a grid ``(H, W)`` or ``(T, H, W)``.

    Both broadcast.
    """

    def place(patch: Tensor) -> tuple[Tensor, ...]:
        """Returns frame, row and column."""
        return patch // (height * width), patch // width % height, patch % width

    frame, row, column = ((a - b).square() for a, b in zip(place(first), place(second), strict=True))
    return frame + row + column


@torch.library.custom_op("tokengraph::adopt_orphans", mutates_args=(), schema=SCHEMA)
def adopt_orphans(
    center: Tensor,
    orphan: Tensor,
    x: Tensor,
    anchors: Tensor,
    height: int,
    width: int,
    lam: int,
    alpha: float,
    frames: int = 1,
) -> Tensor:
    """Gives each orphan the anchor with the smallest sigma in the whole image, for ranks beyond lambda too.

    Args:
        center: Each token's centre so far, ``[B, N]``.
        orphan: ``[B, N]`` bool, True for tokens without an anchor in their window.
        x: Features, ``[B, N, C]``.
        anchors: ``[B, K]`` token ids.
        height: H of the grid.
        width: W of the grid.
        lam: Patches in a window.
        alpha: Spatial factor at rank 0.
        frames: T of a video's grid ``(T, H, W)``.

    Returns:
        ``center`` with the orphans filled in, ``[B, N]``.

    Cost: one check (a host synchronisation on CUDA), and ``O(N log N + K C)`` for each orphan.
    """
    center = center.clone()
    image, token = orphan.nonzero(as_tuple=True)
    patch = torch.arange(frames * height * width, device=x.device)
    for i, t in zip(image.split(256), token.split(256), strict=True):
        by_distance = grid_squared(patch, t[:, None], height, width).argsort(dim=1, stable=True)
        rank = torch.empty_like(by_distance).scatter_(1, by_distance, patch.expand_as(by_distance))
        theirs = anchors[i]
        rank = rank.gather(1, theirs).float()
        distance = (
            torch.linalg.vector_norm(x[i[:, None], theirs].float() - x[i, t][:, None].float(), dim=2)
            * x.size(2) ** -0.5
        )
        sigma = (alpha + (1 - alpha) * rank / lam) * (distance + EPS)
        # Visits anchors by rank, so that ties in sigma go to the smaller rank.
        by_rank = rank.argsort(dim=1)
        first = sigma.gather(1, by_rank).argmin(dim=1, keepdim=True)
        center[i, t] = theirs.gather(1, by_rank.gather(1, first)).squeeze(1)
    return center


@adopt_orphans.register_fake
def _(center: Tensor, *others: object) -> Tensor:
    return torch.empty_like(center)
