"""MCTF: tokens merge that are alike, little attended and small, in both directions between two halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, attention_cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import counting
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.schedule import Schedule, sparing_last
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.both_ways import merge_both_ways
from tokengraph.select.parts.choices.edges import count_merges
from tokengraph.select.parts.scores.criteria import by_criteria
from tokengraph.select.parts.scores.received import received as received_by
from tokengraph.select.tokens import Tokens

TAU = (1.0, 20.0, 40.0)


@explains
def mctf(
    x: Tensor,
    received: Tensor,
    keep: int | list[int],
    *,
    size: Tensor | None = None,
    tau: tuple[float, float, float] = TAU,
    bidirectional: bool = True,
    num_prefix: int = 0,
    mask: Tensor | None = None,
) -> Assignment:
    r"""Merges tokens by similarity, attention and size, from each of two alternating halves into the other.

    Of the ``r = N - keep`` tokens that leave, ``r // 2`` go from the even places of the sequence (prefix tokens
    counted) into their best odd places, by the weights of
    :func:`~tokengraph.select.parts.scores.criteria.by_criteria`; then the others go from odd places into the even
    places that stay. Chains become one cluster. Rows are means weighted by attention times size:

    .. math:: x'_m = \frac{\sum_{c(i)=m} a_i s_i x_i}{\sum_{c(i)=m} a_i s_i}, \qquad s'_m = \sum_{c(i)=m} s_i

    Args:
        x: Token features, ``[B, N, C]`` of patch tokens.
        received: a, the attention that each token receives from all tokens, ``[B, N]``; any positive multiple of it
            gives the same map. Gradients reach it through ``reduce``.
        keep: Clusters an image. At most half the tokens leave in one step.
        size: s, ``[B, N]``; ``None``: one each.
        tau: Temperatures of similarity, attention and size; 0 leaves one out.
        bidirectional: ``False``: all r tokens leave from the even places.
        num_prefix: Prefix tokens in front of the sequence: they take part in the alternation, never in a merge.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``) with its ``weight``. Clusters come in the published
        order: even places by index (without prefix tokens by falling weight), then odd places by falling weight (by
        index where they do not leave). An image that loses nothing keeps its order.

    Raises:
        ValueError: If ``keep`` is below 1, tokens are not finite, ``mask`` has holes, or arguments do not fit.

    Cost: ``O(B N^2 C / 4)`` time, ``B N^2 / 4`` floats; no host synchronisation without a mask.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0]]])
        >>> a = mctf(x, torch.tensor([[0.4, 0.3, 0.2, 0.1]]), 3, tau=(1, 0, 0))
        >>> a.cluster.tolist(), [round(w, 1) for w in a.weight.tolist()]
        ([1, 2, 0, 0], [0.4, 0.3, 0.2, 0.1])

    Source: Lee et al., *Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers*,
    CVPR 2024, and its code. Differs: prefix tokens are masked by their places (published: by even places alone), at
    least one half stays and not ten tokens, zero vectors have cosine 0, attention of 0 counts as the smallest float.
    """
    check_tokens(x)
    check_mask(mask, x, leading=True)
    check_finite(x if mask is None else x[mask])
    for name, value in (("received", received), ("size", size)):
        if value is not None and value.shape != x.shape[:2]:
            raise ValueError(f"Expected {name} of shape [B, N] = {list(x.shape[:2])} (got {list(value.shape)}).")
    _check_tau(tau)
    return _mctf(x, received, keep, size, tau, bidirectional, num_prefix, mask)


@dataclass(frozen=True)
class MCTF(Select):
    """MCTF as a strategy, between blocks, on the tokens and a map of attention; see :func:`mctf`.

    Score: similarity, attention, size. Graph: alternating halves. Choice: the heaviest edges, both ways. Reduction:
    mean by attention times size. Outside a model, where no attention is known, all tokens count alike.

    Args:
        tau: Temperatures of similarity, attention and size; 0 leaves one out.
        bidirectional: Whether tokens leave both halves.
        ahead: ``False``: the map of the block that has just run decides (released: ``one_step_ahead=0``). ``True``: the
            map of the next block decides, before that runs, and then mixes its values, pooled over clusters (released:
            1, its default). ``"precise"``: it decides, and the block makes another one of the merged tokens (released:
            2). In both such a block projects queries, keys and values twice, and no token leaves behind the last
            block. ``trace`` has the fewer tokens from behind the block on.
    """

    name: ClassVar[str] = "mctf"
    reads: ClassVar[str] = "map"
    tau: tuple[float, float, float] = TAU
    bidirectional: bool = True
    ahead: bool | str = False

    def __post_init__(self) -> None:
        _check_tau(self.tau)
        if self.ahead not in (False, True, "precise"):
            raise ValueError(f"Expected ahead to be False, True or 'precise' (got {self.ahead!r}).")
        object.__setattr__(self, "tau", tuple(float(t) for t in self.tau))

    @classmethod
    def published(cls) -> MCTF:
        """The released default: a step ahead, by the pooled map."""
        return cls(ahead=True)

    @property
    def placement(self) -> str:  # type: ignore[override]
        """``"after"`` a block, or ``"ahead"`` of one."""
        return "ahead" if self.ahead else "after"

    @property
    def pools_map(self) -> bool:
        """Whether the next block takes the pooled map: a step ahead, unless precise."""
        return self.ahead is True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """The strategy for a model of ``depth`` blocks; ahead, removals behind the last block are left out."""
        select, schedule = super().bind(channels, depth, schedule)
        return select, sparing_last(schedule) if self.ahead else schedule

    @staticmethod
    def published_schedule(depth: int = 12) -> Schedule:
        """The released DeiT-T and DeiT-S: 16 tokens leave before each block but the first, none after the last."""
        return [16] * (depth - 1) + [0]

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        x, stats = tokens.x, tokens.attention
        received = x.new_ones(x.shape[:2], dtype=torch.float32) if stats is None else received_by(stats)
        return _mctf(x, received, budget, tokens.size, self.tau, self.bidirectional, tokens.num_prefix, tokens.mask)

    def fewest(self, num_tokens: int) -> int:
        """A step leaves at least one half: ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """The map's column sums (of ``channels / head_width`` heads), products between the halves, two maxima."""
        half, heads = num_tokens // 2, max(channels // head_width, 1)
        edges = half * (num_tokens - half)
        sums = Cost(heads * num_tokens * num_tokens, 4 * heads * num_tokens * num_tokens)
        once = attention_cost(num_tokens, channels) if self.ahead else Cost()
        return once + sums + distance_cost(half, num_tokens - half, channels) + Cost(6 * edges, 16 * edges)


def _check_tau(tau: tuple[float, float, float]) -> None:
    if len(tau) != 3 or any(isinstance(t, bool) or not t >= 0 for t in tau):
        raise ValueError(f"Expected tau as three temperatures >= 0 (got {tau!r}). 0 leaves a criterion out.")


def _mctf(
    x: Tensor,
    received: Tensor,
    keep: int | list[int],
    size: Tensor | None,
    tau: tuple[float, float, float],
    bidirectional: bool,
    num_prefix: int,
    mask: Tensor | None,
) -> Assignment:
    images, tokens = x.shape[:2]
    first = num_prefix % 2
    lost, kept = count_merges(x, keep, first, mask)
    received = as_type(received, torch.promote_types(received.dtype, torch.float32))
    weight = received if size is None else received * size
    same = counting(tokens, x.device).expand(images, -1)
    if images == 0 or not (max(lost, default=0) if isinstance(lost, list) else lost):
        return Assignment.from_dense(same, kept, mask=mask, weight=weight)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        edges = by_criteria(x, received, size, tau, first, mask)
        r = torch.tensor(lost, device=x.device)[:, None] if isinstance(lost, list) else lost
        leave = (r // 2, r - r // 2) if bidirectional else (r, None)
        halves = (None, None) if mask is None else (mask[:, first::2], mask[:, 1 - first :: 2])
        number = merge_both_ways(edges, leave, halves, first, by_index=num_prefix > 0)
        if isinstance(r, Tensor):  # an image that loses nothing keeps its order
            number = torch.where(r == 0, same, number)
    return Assignment.from_dense(number, kept, mask=mask, weight=weight, check=False)
