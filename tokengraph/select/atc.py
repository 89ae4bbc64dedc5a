"""ATC: agglomerative clustering; the two closest clusters merge until as many as wanted are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule, powers
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.agglomerate import agglomerate, agglomerate_op
from tokengraph.select.parts.choices.roots import all_single, map_of_roots
from tokengraph.select.parts.graphs.halves import unit_rows
from tokengraph.select.parts.graphs.linkage import LINKAGES
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@explains
def atc(metric: Tensor, keep: int | list[int], *, linkage: str = "average", mask: Tensor | None = None) -> Assignment:
    r"""Merges the closest two clusters again and again, until ``keep`` are there.

    The distance of tokens is :math:`1 - \cos`, that of clusters its mean, minimum or maximum over their tokens.

    Args:
        metric: What similarity is measured on, published: keys, mean over heads; ``[B, N, D]`` of patch tokens.
        keep: Clusters an image, at least 1; clamped to N.
        linkage: ``"average"`` (every token counts once, at any size), ``"single"`` (minimum) or ``"complete"``
            (maximum).
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``); clusters are numbered by their smallest tokens. It is
        that of the sequential method (scipy's), but all pairs that are each other's nearest merge in one round.

    Raises:
        ValueError: If ``keep`` is below 1, ``linkage`` is unknown, or tokens are not finite.

    Cost: about ten rounds for 196 tokens, at most ``log2 N`` for ``"single"``, ``O(B N^2 D)`` each; 1M cosines at a
    time, for ``"complete"`` all of them while a batch has at most 16M. On CUDA one host synchronisation in four rounds.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.7, 0.7]]])
        >>> atc(x, 3).cluster.tolist(), atc(x, 2).cluster.tolist()
        ([0, 1, 0, 2], [0, 1, 0, 0])

    Ties: distances that only rounding tells from 0 are equal; the lower index merges first.

    Source: Haurum et al., *Agglomerative Token Clustering*, ECCV 2024, and its code, which calls scikit-learn. Differs:
    clusters by their smallest tokens (published: in the order of a tree), zero vectors have cosine 0 (published: an
    error), one token is the identity (published: an error).
    """
    check_tokens(metric)
    check_mask(mask, metric)
    check_finite(metric if mask is None else metric[mask])
    _check_linkage(linkage)
    return _atc(metric, keep, linkage, mask)


@dataclass(frozen=True)
class ATC(Select):
    """ATC as a strategy, between attention and MLP, on the attention keys; see :func:`atc`.

    Score: cosine of keys. Graph: complete. Choice: the closest clusters, again and again. Reduction: mean by size.

    Args:
        linkage: ``"average"``, ``"single"`` or ``"complete"``.
        official: As released without its flag for proportional attention: attention and later means count a merged
            token once. With the flag it is the default here.
    """

    name: ClassVar[str] = "atc"
    linkage: str = "average"
    official: bool = False

    def __post_init__(self) -> None:
        _check_linkage(self.linkage)

    @classmethod
    def published(cls, linkage: str = "average") -> ATC:
        """The released defaults, sizes forgotten after each block."""
        return cls(linkage, official=True)

    @staticmethod
    def published_schedule(keep: float = 0.5, layers: tuple[int, ...] = (4, 7, 10)) -> Schedule:
        """``int(N * keep)`` tokens in the first block of three, ``int(N * keep ** 2)`` in the second...

        The released blocks are 3, 6 and 9 (0-based), so layers 4, 7 and 10 of finished blocks.
        """
        return powers(keep, layers)

    @property
    def weighs(self) -> bool:
        """Sizes weigh later means and attention, but not as released without the flag."""
        return not self.official

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _atc(tokens.keys, budget, self.linkage, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, and all cosines in ten rounds."""
        keys = Cost(num_tokens * channels, 4 * num_tokens * (channels + head_width))
        return keys + distance_cost(num_tokens, num_tokens, head_width) * 10


def _check_linkage(linkage: str) -> None:
    if linkage not in LINKAGES:
        raise ValueError(f"Expected linkage to be 'average', 'single' or 'complete' (got {linkage!r}).")


def _atc(metric: Tensor, keep: int | list[int], linkage: str, mask: Tensor | None) -> Assignment:
    budget = clamp_budget(keep, metric, mask)
    images, tokens = metric.shape[:2]
    if isinstance(budget, list):
        lost = [n - k for n, k in zip(valid_counts(metric, mask), budget, strict=True)]
    else:
        lost = [tokens - budget]
    most = max(lost, default=0)
    if most == 0 or images == 0:
        return all_single(metric, budget, mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        unit = unit_rows(metric).nan_to_num(0.0)  # an image that is not finite, inside a model, keeps its budget too
        each = torch.tensor(lost, device=unit.device).expand(images)
        run = agglomerate_op if torch.compiler.is_compiling() else agglomerate
        return map_of_roots(run(unit, each, most, linkage, mask), budget, mask)
