"""MPM: tokens that are each other's nearest neighbours merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.flat.tables import counting
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.choices.best import among_best
from tokengraph.select.parts.choices.roots import all_single, map_of_roots
from tokengraph.select.parts.graphs.halves import unit_rows
from tokengraph.select.parts.graphs.mutual import first_of_mutual, nearest
from tokengraph.select.threshold import ThresholdSelect
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts


@explains
def mpm(x: Tensor, keep: int | list[int] = 1, *, mask: Tensor | None = None) -> Assignment:
    r"""Merges every pair of tokens that are each other's nearest neighbour by cosine.

    .. math:: n(i) = \arg\max_{j \ne i} \cos(x_i, x_j), \qquad i \text{ and } j \text{ merge} \iff n(i) = j, n(j) = i

    Args:
        x: Tokens, ``[B, N, C]``; published: as they come to a block, before its norm.
        keep: The fewest clusters that an image may have left; the pairs that resemble each other most then merge.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``). Images have between ``ceil(N / 2)`` and ``N - 1``
        clusters of one or two tokens, numbered by their smaller members.

    Raises:
        ValueError: If ``keep`` is below 1, or tokens are not finite.

    Cost: ``O(B N^2 C)`` time, 1M cosines at a time; one host synchronisation, for the counts.

    Example:
        >>> mpm(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.5, 0.5]]])).cluster.tolist()
        [0, 1, 0, 2]

    Ties: the lower index; cosines from ``1 - 2**-20`` on are equal. Of many equal tokens the first two merge.

    Source: *Mutual Pair Merging*, CVPR 2026 Findings (arXiv 2604.05718), by its public text: there is no code. Differs:
    the text says neither how earlier merges count nor what happens to prefix tokens (here they never merge).
    """
    check_tokens(x)
    check_mask(mask, x)
    check_finite(x if mask is None else x[mask])
    return _mpm(x, keep, mask)


@dataclass(frozen=True)
class MPM(ThresholdSelect):
    """MPM as a strategy, before blocks of its own choice; see :func:`mpm`.

    Score: cosine. Graph: nearest neighbours. Choice: mutual ones. Reduction: mean by size. Images keep different
    numbers of tokens: ``handle.trace.counts_per_image(layer)``. The published gather before a decoder is
    ``handle.trace.lift``.

    Args:
        layers: Blocks (0-based) before which it acts; a schedule says others.
        official: As the public text reads: plain means, and attention without sizes. Default: both weigh by size.
    """

    name: ClassVar[str] = "mpm"
    placement: ClassVar[str] = "before"
    reads: ClassVar[str] = "nothing"
    layers: tuple[int, ...] = (2, 5)
    official: bool = False

    @classmethod
    def published(cls) -> MPM:
        """Before blocks 2 and 5, with plain means, as the public text reads."""
        return cls(official=True)

    def own_layers(self) -> tuple[int, ...]:
        """See :class:`~tokengraph.select.threshold.ThresholdSelect`."""
        return tuple(self.layers)

    @property
    def weighs(self) -> bool:
        """Sizes weigh later means and attention, but not as the public text reads."""
        return not self.official

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _mpm(tokens.x, budget, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """All cosines, and a maximum over each row."""
        return distance_cost(num_tokens, num_tokens, channels) + Cost(num_tokens**2, 0)


def _mpm(x: Tensor, keep: int | list[int], mask: Tensor | None) -> Assignment:
    budget, counts = clamp_budget(keep, x, mask), valid_counts(x, mask)
    floors = budget if isinstance(budget, list) else [budget] * len(counts)
    room = [n - k for n, k in zip(counts, floors, strict=True)]
    if not any(room):
        return all_single(x, counts, mask)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        best, to = nearest(unit_rows(x), mask)
        first = first_of_mutual(best, to, mask)
        pairs = first.sum(dim=1).tolist()
        if any(p > most for p, most in zip(pairs, room, strict=True)):
            pairs = [min(p, most) for p, most in zip(pairs, room, strict=True)]
            first = among_best(best.masked_fill(~first, -torch.inf), pairs, None) & first
        place = counting(x.size(1), x.device).expand_as(to)
        second = first.gather(1, to) & (to < place) & (to.gather(1, to) == place)
        kept = [n - p for n, p in zip(counts, pairs, strict=True)]
        return map_of_roots(torch.where(second, to, place), kept, mask)
