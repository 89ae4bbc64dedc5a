"""PiToMe: merges tokens that resemble many others, and protects distinctive ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.flat.tables import counting
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.edges import count_merges
from tokengraph.select.parts.choices.ranked import merge_ranked_units
from tokengraph.select.parts.graphs.halves import unit_rows
from tokengraph.select.parts.scores.energy import energy_of
from tokengraph.select.tokens import Tokens

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule

MODES = ("energy", "bsm")


@explains
def pitome(
    metric: Tensor,
    keep: int | list[int],
    *,
    margin: float,
    alpha: float = 1.0,
    mode: str = "energy",
    mask: Tensor | None = None,
) -> Assignment:
    r"""Merges tokens that resemble many others.

    Tokens are ranked by falling :func:`~tokengraph.select.parts.scores.energy.energy`; even ranks form A, odd ranks B.
    In mode ``"energy"`` only the first 2r ranks take part, :math:`r = N - K`, and every token of A merges into its most
    similar token of B; the other tokens are protected. In mode ``"bsm"`` all ranks take part, and the r heaviest edges
    from A to B are contracted.

    Args:
        metric: Features for the similarity, ``[B, N, D]`` of patch tokens; published: keys, mean over heads.
        keep: K, clusters an image. One step removes at most ``N // 2`` tokens; below that, the result has as few
            clusters as possible.
        margin: Cosine above which two tokens count as similar.
        alpha: Weight of cosines below the margin.
        mode: ``"energy"`` or ``"bsm"``.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``). Clusters come in the published order: protected tokens
        by falling energy (unmerged tokens of A by falling similarity), then B by rank. An image without merges keeps
        its order.

    Raises:
        ValueError: If ``keep`` is below 1, ``mode`` is unknown, or tokens are not finite.

    Cost: ``O(B N^2 D)`` time; 16M cosines at a time, and the ``[B, r, r]`` block (``[B, N/2, N/2]`` for ``"bsm"``). No
    host synchronisation without a mask.

    Example:
        >>> crowd = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.4]]])
        >>> pitome(crowd, 3, margin=0.5).cluster.tolist()
        [0, 1, 2, 2]

    Source: Tran et al., *Accelerating Transformers with Spectrum-Preserving Token Merging*, NeurIPS 2024, and its code.
    Differs: with nothing to remove it returns the identity (published: an error, or another order), at most half of
    the tokens merge (published: an error), zero vectors have cosine 0, ties go to the lower index.
    """
    check_tokens(metric)
    check_mask(mask, metric)
    check_finite(metric if mask is None else metric[mask])
    _check_mode(mode)
    return _pitome(metric, keep, margin, alpha, mode, mask)


@dataclass(frozen=True)
class PiToMe(Select):
    """PiToMe as a strategy, between attention and MLP, on the attention keys; see :func:`pitome`.

    Its four parts are the score (energy), the graph (halves by rank), the choice (all of A, or its heaviest edges) and
    the reduction (mean weighted by size).

    Args:
        margin: m before the first block; block i of L has ``margin * (1 - i / L)``.
        alpha: Weight of cosines below the margin.
        mode: ``"energy"`` or ``"bsm"``; or a sequence of them, one for each block.
        official: As released: attention does not weigh merged tokens by size (means still do).
        depth: L, set by ``attach``; ``None`` outside a model, where every margin is ``margin``.
    """

    name: ClassVar[str] = "pitome"
    margin: float = 0.75
    alpha: float = 1.0
    mode: str | tuple[str, ...] = "energy"
    official: bool = False
    depth: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mode, str):
            object.__setattr__(self, "mode", tuple(self.mode))
        for mode in (self.mode,) if isinstance(self.mode, str) else self.mode:
            _check_mode(mode)

    @classmethod
    def released(cls, model: str = "deit", depth: int = 12) -> PiToMe:
        """Returns the settings released for ``"deit"`` or ``"mae"`` of ``depth`` blocks at a ratio of 0.9125.

        DeiT uses ``"bsm"`` in the first half of the blocks and ``"energy"`` in the second, MAE the reverse.

        Raises:
            ValueError: For another model.
        """
        order: Sequence[str] = {"deit": ("bsm", "energy"), "mae": ("energy", "bsm")}.get(model, ())
        if not order:
            raise ValueError(f"Expected model to be 'deit' or 'mae' (got {model!r}). Set margin and mode for others.")
        half = (depth + 1) // 2
        return cls(mode=(order[0],) * half + (order[1],) * (depth - half), official=True)

    @classmethod
    def published(cls) -> PiToMe:
        """Returns the released settings for a DeiT of 12 blocks."""
        return cls.released()

    @property
    def prop_attn(self) -> bool | str:
        """Proportional attention, unless ``official``; means use sizes either way."""
        return "none" if self.official else True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """Returns the strategy for a model of ``depth`` blocks; see :meth:`tokengraph.Select.bind`."""
        if not isinstance(self.mode, str) and len(self.mode) != depth:
            raise ValueError(f"Expected one mode a block, L={depth} (got {len(self.mode)}).")
        bound = copy.copy(self)  # with what an instance has beside its fields, such as a reduction of its own
        object.__setattr__(bound, "depth", depth)
        return super(PiToMe, bound).bind(channels, depth, schedule)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        layer = max(tokens.layer, 0)
        margin = self.margin if self.depth is None else self.margin * (1 - layer / self.depth)
        mode = self.mode if isinstance(self.mode, str) else self.mode[layer]
        return _pitome(tokens.keys, budget, margin, self.alpha, mode, tokens.mask)

    def fewest(self, num_tokens: int) -> int:
        """One step keeps at least half of the tokens, ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the mean of keys over heads, all cosines and their sums, and products between A and B."""
        r = num_tokens - keep
        keys = Cost(num_tokens * channels, 4 * num_tokens * (channels + head_width))
        return keys + distance_cost(num_tokens, num_tokens, head_width) + distance_cost(r, r, head_width)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"Expected mode to be 'energy' or 'bsm' (got {mode!r}).")


def _pitome(
    metric: Tensor, keep: int | list[int], margin: float, alpha: float, mode: str, mask: Tensor | None
) -> Assignment:
    images, tokens = metric.shape[:2]
    lost, kept = count_merges(metric, keep, 0, mask)
    same = counting(tokens, metric.device) if mask is None else mask.long().cumsum(dim=1) - 1
    if images == 0 or not (max(lost, default=0) if isinstance(lost, list) else lost):
        return Assignment.from_dense(same.expand(images, -1), kept, mask=mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        unit = unit_rows(metric)
        score = energy_of(unit, margin, alpha, mask)
        order = score.argsort(dim=1, descending=True, stable=True)  # padding, at -inf, comes last
        number = merge_ranked_units(unit, order, lost, mask, mode)
        if isinstance(lost, list):  # an image without merges keeps its order
            number = torch.where(torch.tensor(lost, device=number.device)[:, None] == 0, same, number)
        return Assignment.from_dense(number, kept, mask=mask, check=isinstance(lost, list))
