"""PPT: prunes images in which few tokens matter, and pools the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select
from tokengraph.select.layers import own_layers, removing
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.choices.edges import merge_halves
from tokengraph.select.parts.choices.peaks import check_order
from tokengraph.select.parts.scores.importance import importance
from tokengraph.select.tokens import Tokens


@explains
def ppt(
    score: Tensor,
    keys: Tensor,
    keep: int | list[int],
    threshold: float = 7e-5,
    *,
    relative: bool = False,
    num_prefix: int = 1,
    mask: Tensor | None = None,
    order: str = "index",
) -> Assignment:
    r"""Prunes or pools, image by image: pools where the scores vary little, so that no token stands out.

    Below the threshold the most similar pairs of two alternating sets merge, as :func:`tokengraph.tome` has it; from it
    on the tokens with the lowest scores drop. Both leave the same number of tokens.

    Args:
        score: ``[B, N]``, each image's sums to one: :func:`tokengraph.select.parts.scores.importance.ppt_score`.
        keys: What similarity is measured on, ``[B, N, D]``.
        keep: Clusters an image; one step removes at most half of the tokens.
        threshold: On the unbiased variance v of an image's scores: pools if v is below. v falls with the number of
            tokens, about as :math:`1/n^2`.
        relative: Whether the threshold is on :math:`n^2 v` instead, which does not fall.
        num_prefix: Prefix tokens in front of the sequence, which count in the alternation.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.
        order: Of pruned tokens: ``"index"``, or ``"score"``, the best first, as the code has it. A later pooling
            alternates over the order, so it then merges other pairs.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``); pooled clusters come in ToMe's order.

    Raises:
        ValueError: If shapes do not fit or a value is not finite.

    Cost: that of ToMe and a sort; no host synchronisation without a mask.

    Source: Wu et al., *PPT: Token Pruning and Pooling for Efficient Vision Transformers*, 2023, and its code. Differs:
    each image takes its own route without a pass over the host, ties, one token.
    """
    check_tokens(keys)
    check_mask(mask, keys, leading=True)
    if score.shape != keys.shape[:2]:
        raise ValueError(f"Expected score of shape {list(keys.shape[:2])} (got {list(score.shape)}).")
    check_finite(score if mask is None else score[mask])
    check_order(order)
    return _ppt(score, keys, keep, threshold, relative, num_prefix, mask, order)


def score_variance(score: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The unbiased variance of each image's scores ``[B, N]``, and its number of tokens, both ``[B]``; one token: 0."""
    there = torch.ones_like(score) if mask is None else mask.to(score.dtype)
    count = there.sum(dim=1)
    mean = (score * there).sum(dim=1) / count.clamp_min(1)
    off = (score - mean[:, None]).square() * there
    return off.sum(dim=1) / (count - 1).clamp_min(1), count


def _ppt(
    score: Tensor,
    keys: Tensor,
    keep: int | list[int],
    threshold: float,
    relative: bool,
    num_prefix: int,
    mask: Tensor | None,
    order: str,
) -> Assignment:
    pooled = merge_halves(keys, keep, num_prefix, mask)
    images, width = score.shape
    if not isinstance(keep, list) and pooled.num_clusters == pooled.num_tokens:
        return pooled
    kept: int | list[int]
    if mask is None and pooled.counts is None:
        kept = pooled.num_clusters // max(images, 1)
    else:
        assert pooled.cluster_ptr is not None
        kept = list(pooled.counts) if pooled.counts is not None else pooled.cluster_ptr.diff().tolist()
    variance, count = score_variance(score, mask)
    pools = (variance * count.square() if relative else variance) < threshold
    pruned = keep_best(score, kept, mask, order)
    if mask is not None:
        pools = torch.repeat_interleave(pools, mask.sum(dim=1), output_size=pooled.num_tokens)
    else:
        pools = pools[:, None].expand(-1, width).flatten()
    cluster = torch.where(pools, pooled.cluster, pruned.cluster)
    return Assignment(cluster, pooled.num_clusters, True, pooled.ptr, pooled.cluster_ptr, counts=pooled.counts)


@dataclass(frozen=True)
class PPT(Select):
    """PPT as a strategy, between attention and MLP, by class attention and values; see :func:`ppt`.

    Sizes weigh attention and later means, also where images prune. Without a schedule it removes ``r`` tokens at each
    of ``layers``; one step removes at most half.

    Args:
        r: Tokens that leave at each layer.
        layers: Numbers of finished blocks; ``None``: a quarter, a half and three quarters of the depth, and one more,
            which is inside blocks 3, 6 and 9 of 12 (counted from 0) as published.
        threshold: As in :func:`ppt`; published: 7e-5 without training, 6e-5 with it, for 196 patches.
        relative: As in :func:`ppt`.
        order: As in :func:`ppt`; ``"score"`` is the code's.

    Source: Wu et al., 2023, and its code. Differs: sizes count in every mean, also with ``prop_attn="none"`` (the code
    then forgets them between steps).
    """

    name: ClassVar[str] = "ppt"
    merges: ClassVar[bool] = False  # pruned images lose tokens
    reads: ClassVar[str] = "class"
    r: int = 50
    layers: Sequence[int] | None = None
    threshold: float = 7e-5
    relative: bool = False
    order: str = "index"

    def __post_init__(self) -> None:
        check_order(self.order)
        if self.r < 0:
            raise ValueError(f"Expected r >= 0 tokens to remove (got {self.r}).")

    @classmethod
    def published(cls) -> PPT:
        """Returns the released behaviour: pruned tokens come by score.

        Source: the code of Wu et al., 2023.
        """
        return cls(order="score")

    @property
    def weighs(self) -> bool:
        """Pooled tokens weigh by size."""
        return True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy and its schedule; see :meth:`tokengraph.Select.bind`."""
        if schedule is None:
            schedule = removing(self.r, own_layers(self.layers, depth, inside=True), depth)
        return self, schedule

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        score = importance(tokens)
        return _ppt(
            score, tokens.keys, budget, self.threshold, self.relative, tokens.num_prefix, tokens.mask, self.order
        )

    def fewest(self, num_tokens: int) -> int:
        """One step keeps at least half of the tokens, ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one row of the map, the lengths of values, and ToMe's products and maxima."""
        half = num_tokens // 2
        rows = Cost(3 * num_tokens * channels, 4 * num_tokens * (2 * channels + head_width))
        return rows + distance_cost(half, num_tokens - half, head_width) + Cost(half * half, 4 * half * half)
