"""Runs a strategy on a ragged batch image by image, if it supports neither masks nor several grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from torch import Tensor

from tokengraph.attention.size_bias import SizeBias
from tokengraph.attention.stats import AttentionStats
from tokengraph.edges.grid import Grids
from tokengraph.maps.hard import Assignment
from tokengraph.maps.join import join
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens


def select_alone(
    select: Select, tokens: Tokens, budget: int | list[int], grids: Grids, full: bool | Sequence[bool]
) -> Assignment | SoftAssignment:
    """Calls a strategy for each image by itself, without its padding, and joins the maps.

    Args:
        select: The strategy.
        tokens: The batch, ``[B, N, C]``; ``memory`` is a list, one entry an image, or ``None``.
        budget: Clusters to keep, one int or one an image; clamped to the image's tokens.
        grids: ``(H, W)`` of each image's input patches.
        full: True if token i of an image still is its patch i; for all images, or one for each.

    Cost: B calls of the strategy, one an image, without the efficiency of a batch.
    """
    images = tokens_alone(tokens, grids, full)
    budgets = budget if isinstance(budget, list) else [budget] * len(images)
    parts = [select(image, min(keep, image.x.size(1))) for image, keep in zip(images, budgets, strict=True)]
    sizes = None if tokens.size is None else [image.size[0] for image in images if image.size is not None]
    return join(parts, [image.x[0] for image in images], sizes)


def tokens_alone(tokens: Tokens, grids: Grids, full: bool | Sequence[bool]) -> list[Tokens]:
    """Returns each image's ``Tokens`` on their own; arguments as for :func:`select_alone`."""
    batch, width = tokens.x.shape[:2]
    counts = [width] * batch if tokens.mask is None else tokens.mask.sum(dim=1).tolist()
    stats = None if tokens.attention is None else _Images(tokens.attention)
    pos = cache(lambda: tokens.pos)

    def cut(rows: Tensor | None, b: int) -> Tensor | None:
        return None if rows is None else rows[b : b + 1, : counts[b]]

    def located(b: int) -> Callable[[], Tensor] | None:
        return None if tokens.locate is None else lambda: pos()[b : b + 1, : counts[b]]

    return [
        replace(
            tokens,
            x=tokens.x[b : b + 1, : counts[b]],
            size=cut(tokens.size, b),
            grid=grids[b],
            full=full if isinstance(full, bool) else full[b],
            mask=None,
            attention=None if stats is None else stats.of(b, counts[b]),
            locate=located(b),
            patch=cut(tokens.patch, b),
            memory=tokens.memory[b] if isinstance(tokens.memory, list) else tokens.memory,
            keep=cut(tokens.keep, b),
            spared=None,
        )
        for b in range(batch)
    ]


class _Images:
    """Attention statistics of a batch, split by image; shared parts are computed once."""

    def __init__(self, stats: AttentionStats) -> None:
        self.stats = stats
        self.keys = cache(stats.heads_of_keys)
        self.values = cache(stats.values)

    def of(self, b: int, count: int) -> AttentionStats:
        """Returns the statistics of image b and its first ``count`` patch tokens."""
        stats, one, rows = self.stats, slice(b, b + 1), slice(0, self.stats.num_prefix + count)
        if stats.attention is not None:
            return AttentionStats.from_map(stats.attention[one, :, rows, rows], stats.num_prefix)
        bias = stats.bias.bias if isinstance(stats.bias, SizeBias) else stats.bias
        if bias is not None:
            bias = bias[one] if bias.size(0) > 1 else bias
            bias = bias[..., rows, rows] if bias.size(-2) > 1 else bias[..., rows]

        def project() -> tuple[Tensor, Tensor]:
            q, k = stats._queries_keys()
            return q[one, :, rows], k[one, :, rows]

        return AttentionStats(
            project,
            stats.scale,
            stats.num_prefix,
            bias,
            keys=lambda: self.keys()[one, :, rows],
            values=lambda: self.values()[one, :, rows],
        )
