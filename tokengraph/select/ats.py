"""ATS: samples tokens by their importance, so that each image keeps as many as it needs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.choices.samples import nearest_sampled, sampled
from tokengraph.select.parts.scores.importance import importance
from tokengraph.select.threshold import ThresholdSelect
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@explains
def ats(
    score: Tensor, samples: int | list[int], *, least: int | list[int] = 1, mask: Tensor | None = None,
    official: bool = False,
) -> Assignment:  # fmt: skip
    r"""Keeps the tokens that inverse transform sampling of a score hits.

    A token with half of an image's score is hit by half of the samples, and kept once. With :math:`u_k = (2k - 1) / 2K`
    of the K samples, each takes the first token i, in index order, at which the sum of the scores so far reaches
    :math:`u_k` of the whole.

    Args:
        score: ``[B, N]``, not negative.
        samples: K: the most tokens an image keeps; one number, or one for each.
        least: The fewest; the best others fill up.
        mask: ``[B, N]`` bool, True where there is a token.
        official: The code's sampling: tokens by rising score, K - 1 equal steps from the second lowest sum on, and the
            nearest sum. It never takes the token of the lowest score, and gives half of a token's samples to its
            neighbour.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``); kept tokens stay in order.

    Raises:
        ValueError: If ``score`` is not finite or has another shape.

    Cost: ``O(N + K log N)``, sorts with ``official``; one host synchronisation, as images keep different numbers.

    Example:
        >>> ats(torch.tensor([[0.1, 0.8, 0.1]]), 3).cluster.tolist()
        [1, 0, 1]
        >>> ats(torch.tensor([[0.1, 0.8, 0.1]]), 3, official=True).cluster.tolist()
        [2, 0, 1]

    Source: Fayyaz et al., *Adaptive Token Sampling for Efficient Vision Transformers*, ECCV 2022; ``official`` follows
    its code for one image (there an image's result depends on its batch). Differs: the default is the proper inverse,
    our own.
    """
    if score.dim() != 2:
        raise ValueError(f"Expected score of shape [B, N] (got {list(score.shape)}).")
    check_mask(mask, score)
    if min([samples] if isinstance(samples, int) else samples, default=0) < 0:
        raise ValueError(f"Expected samples >= 0 (got {samples}).")
    check_finite(score if mask is None else score[mask])
    return _ats(score, samples, least, mask, official)


def _ats(
    score: Tensor, samples: int | list[int], least: int | list[int], mask: Tensor | None, official: bool
) -> Assignment:
    counts = valid_counts(score, mask)
    least = clamp_budget(least, score, mask)
    floors = least if isinstance(least, list) else [least] * len(counts)
    score = score.detach().to(torch.promote_types(score.dtype, torch.float32))
    score = score if mask is None else score.masked_fill(~mask, 0.0)
    many = samples if isinstance(samples, list) else [samples] * len(counts)
    kept = nearest_sampled(score, many, counts, mask) if official else sampled(score, many)
    kept = kept if mask is None else kept & mask
    made = [min(max(k, f), n) for k, f, n in zip(kept.sum(dim=1).tolist(), floors, counts, strict=True)]
    top = score.amax(dim=1, keepdim=True) if score.size(1) else score
    return keep_best(torch.where(kept, score + top + 1, score), made, mask)


@dataclass(frozen=True)
class ATS(ThresholdSelect):
    """ATS as a strategy, between attention and MLP, by class attention and values; see :func:`ats`.

    It needs no schedule and no training. A token whose score is at least one in ``samples`` always stays, so an image
    with much to see keeps more tokens than one with little.

    Args:
        samples: K; ``None``: as many as the input has patches, in every layer, as published.
        layers: Numbers of finished blocks; ``None``: from the fourth block on, as published for 12 blocks.
        official: As in :func:`ats`.

    Source: Fayyaz et al., ECCV 2022. Differs: see :func:`ats`; an image's result does not depend on its batch.
    """

    name: ClassVar[str] = "ats"
    merges: ClassVar[bool] = False
    reads: ClassVar[str] = "class"
    samples: int | None = None
    layers: Sequence[int] | None = None
    official: bool = False

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"Expected samples >= 1 (got {self.samples}).")

    @classmethod
    def published(cls) -> ATS:
        """Returns the released sampling, for each image alone.

        Source: the code of Fayyaz et al., ECCV 2022.
        """
        return cls(official=True)

    def own_layers(self) -> tuple[int, ...]:
        """Its layers, or blocks 4 to 12."""
        return tuple(range(4, 13)) if self.layers is None else tuple(self.layers)

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[ATS, Schedule]:  # type: ignore[override]
        """Returns the strategy and its schedule; see :meth:`tokengraph.Select.bind`."""
        fitted = self
        if self.layers is None and schedule is None:
            fitted = copy.copy(self)
            object.__setattr__(fitted, "layers", tuple(range(max(1, depth // 4) + 1, depth + 1)))
        bound, planned = super(ATS, fitted).bind(channels, depth, schedule)
        return bound, planned  # type: ignore[return-value]

    def begin(self, tokens: Tokens) -> int | list[int]:
        """The number of patches at the input."""
        return tokens.x.size(1) if tokens.mask is None else valid_counts(tokens.x, tokens.mask)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        samples = self.samples or tokens.memory
        if samples is None:
            samples = valid_counts(tokens.x, tokens.mask)
        return _ats(importance(tokens), samples, budget, tokens.mask, self.official)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts one row of the map, the lengths of values, and the sums."""
        return Cost(3 * num_tokens * channels, 8 * num_tokens * channels)
