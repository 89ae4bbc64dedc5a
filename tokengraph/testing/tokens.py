"""Token sets for corner cases of strategies, and tokens as inside a block, without a model."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.edges.grid import grid_positions
from tokengraph.kinds import explains
from tokengraph.select.tokens import Tokens


@explains
def make_tokens(x: Tensor, grid: tuple[int, int] | None, *, layer: int = 0, mask: Tensor | None = None) -> Tokens:
    """Makes tokens of a full grid with a class token before them, and attention from the features.

    Queries are fixed, and keys and values are the features split into two heads, so images do not affect each other.

    Args:
        x: ``[B, H*W, C]``.
        grid: ``(H, W)``; with ``mask`` it may be ``None``, as in a model whose images have different grids.
        layer: Number of finished blocks.
        mask: ``[B, N]`` bool, True at tokens: the batch is padded as inside a model, and attention ignores padding.
    """
    images, _, channels = x.shape
    width = max(channels // 2, 1)

    def project() -> tuple[Tensor, Tensor]:
        first = x.new_ones(images, 1, channels)
        keys = torch.cat([first, x], dim=1)[..., : 2 * width]
        keys = keys.expand(-1, -1, 2 * width).unflatten(2, (2, width)).transpose(1, 2)
        return torch.ones_like(keys).cumsum(dim=3) / width, keys

    bias = None
    if mask is not None:
        keys = torch.cat([mask.new_ones(images, 1), mask], dim=1)
        bias = x.new_zeros(keys.shape).masked_fill(~keys, -torch.inf)[:, None, None]
    stats = AttentionStats(project, width**-0.5, 1, bias, values=lambda: project()[1])
    if grid is None:
        return Tokens(x, None, None, False, mask, layer, 1, stats)
    pos = grid_positions(grid, device=x.device).expand(images, -1, -1)
    return Tokens(x, None, grid, True, mask, layer, 1, stats, lambda: pos)


def corner_cases() -> dict[str, tuple[Tensor, tuple[int, int]]]:
    """Returns token sets ``[B, H*W, C]`` and grids: constant, duplicate, zero, huge, tiny, one token, thin grid."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    duplicates = draw(2, 6, 8)[:, torch.arange(24) % 6]
    mostly_zero = draw(2, 24, 8)
    mostly_zero[:, ::2] = 0
    return {
        "constant": (torch.full((2, 24, 8), 0.37), (4, 6)),
        "zero": (torch.zeros(1, 24, 8), (4, 6)),
        "duplicate": (duplicates, (4, 6)),
        "half_zero": (mostly_zero, (4, 6)),
        "huge": (draw(2, 24, 8) * 1e15, (4, 6)),
        "far_from_origin": (draw(1, 24, 8) * 1e-3 + 1e3, (4, 6)),
        "tiny": (draw(2, 24, 8) * 1e-30, (4, 6)),
        "one_outlier": (torch.cat([draw(1, 1, 8) * 1e6, draw(1, 23, 8)], dim=1), (4, 6)),
        "one_token": (draw(2, 1, 8), (1, 1)),
        "two_tokens": (draw(2, 2, 8), (2, 1)),
        "thin": (draw(2, 7, 8), (1, 7)),
        "one_channel": (draw(2, 24, 1), (4, 6)),
    }
