"""PiToMe: tokens of a crowd merge, tokens that stand alone are protected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.flat.layout import take_rows
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.edges import count_merges
from tokengraph.select.parts.graphs.halves import cosines, unit_rows
from tokengraph.select.parts.scores.energy import energy
from tokengraph.select.tokens import Tokens

if TYPE_CHECKING:
    from tokengraph.schedule import Schedule

MODES = ("energy", "bsm")


def pitome(
    metric: Tensor,
    keep: int | list[int],
    *,
    margin: float,
    alpha: float = 1.0,
    mode: str = "energy",
    mask: Tensor | None = None,
) -> Assignment:
    r"""Merges tokens that resemble many others, each into the most similar one of every other rank.

    Tokens are ranked by falling :func:`~tokengraph.select.parts.scores.energy.energy`. By ``"energy"`` the first 2r
    take part, :math:`r = N - K`: even ranks form A, odd ranks B, and every token of A merges into its most similar one
    of B; the others are protected. By ``"bsm"`` all ranks take part, and the r heaviest edges from A to B are
    contracted.

    Args:
        metric: What similarity is measured on, published: keys, mean over heads; ``[B, N, D]`` of patch tokens.
        keep: K, clusters an image. At most ``N // 2`` tokens leave in one step; the result then has as few as possible.
        margin: Cosine from which tokens speak for a crowd.
        alpha: Weight of cosines below the margin.
        mode: ``"energy"`` or ``"bsm"``.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``). Clusters come in the published order: protected tokens
        by falling energy (unmerged tokens of A by falling similarity), then B by rank. An image that loses nothing
        keeps its order.

    Raises:
        ValueError: If ``keep`` is below 1, ``mode`` is unknown, or tokens are not finite.

    Cost: ``O(B N^2 D)`` time; 16M cosines at a time, and the ``[B, r, r]`` block (``[B, N/2, N/2]`` for ``"bsm"``). No
    host synchronisation without a mask.

    Example:
        >>> crowd = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.9, 0.0]]])
        >>> pitome(crowd, 3, margin=0.5).cluster.tolist()
        [2, 1, 2, 0]

    Source: Tran et al., *Accelerating Transformers with Spectrum-Preserving Token Merging*, NeurIPS 2024, and its code.
    Differs: nothing to remove is the identity (published: an error, or another order), at most half the tokens leave
    (published: an error), zero vectors have cosine 0, ties go to the lower index.
    """
    check_tokens(metric)
    check_mask(mask, metric)
    check_finite(metric if mask is None else metric[mask])
    _check_mode(mode)
    return _pitome(metric, keep, margin, alpha, mode, mask)


@dataclass(frozen=True)
class PiToMe(Select):
    """PiToMe as a strategy, between attention and MLP, on the attention keys; see :func:`pitome`.

    Score: energy. Graph: halves by rank. Choice: all of A, or its heaviest edges. Reduction: mean by size.

    Args:
        margin: m before the first block; block i of L has ``margin * (1 - i / L)``.
        alpha: Weight of cosines below the margin.
        mode: ``"energy"`` or ``"bsm"``; or a sequence of them, one for each block.
        official: As released: attention does not weigh merged tokens by size (means still do).
        depth: L; ``attach`` fills it in. ``None``: outside a model, where the margin is ``margin``.
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
        """The released settings for a ``"deit"`` or ``"mae"`` of ``depth`` blocks; with a ratio of 0.9125 there.

        DeiT takes ``"bsm"`` in the first half of the blocks and ``"energy"`` in the second, MAE the other way round.

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
        """The released settings for DeiT of 12 blocks."""
        return cls.released()

    @property
    def prop_attn(self) -> bool | str:
        """Attention weighs keys by size, but not as released; means do in both."""
        return "none" if self.official else True

    def bind(self, channels: int, depth: int, schedule: Schedule | None = None) -> tuple[Select, Schedule]:
        """The strategy for a model of ``depth`` blocks; see :meth:`tokengraph.Select.bind`."""
        if not isinstance(self.mode, str) and len(self.mode) != depth:
            raise ValueError(f"Expected one mode a block, L={depth} (got {len(self.mode)}).")
        return super(PiToMe, replace(self, depth=depth)).bind(channels, depth, schedule)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        layer = max(tokens.layer, 0)
        margin = self.margin if self.depth is None else self.margin * (1 - layer / self.depth)
        mode = self.mode if isinstance(self.mode, str) else self.mode[layer]
        return _pitome(tokens.keys, budget, margin, self.alpha, mode, tokens.mask)

    def fewest(self, num_tokens: int) -> int:
        """A step leaves at least one half: ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, all cosines and their sums, products between the tokens that take part."""
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
    same = torch.arange(tokens, device=metric.device) if mask is None else mask.long().cumsum(dim=1) - 1
    if images == 0 or not (max(lost, default=0) if isinstance(lost, list) else lost):
        return Assignment.from_dense(same.expand(images, -1), kept, mask=mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        score = energy(metric, margin=margin, alpha=alpha, mask=mask)
        order = score.argsort(dim=1, descending=True, stable=True)  # padding, at -inf, comes last
        number = _merge(metric, order, lost, mask, mode)
        if isinstance(lost, list):  # an image that loses nothing keeps its order
            number = torch.where(torch.tensor(lost, device=number.device)[:, None] == 0, same, number)
        return Assignment.from_dense(number, kept, mask=mask)


def _merge(metric: Tensor, order: Tensor, lost: int | list[int], mask: Tensor | None, mode: str) -> Tensor:
    """Cluster of each token within its image, ``[B, N]``; of ``order`` the ranks that take part alternate."""
    tokens, device = order.size(1), order.device
    most, r = max(lost) if isinstance(lost, list) else lost, _column(lost, device)
    n = tokens if mask is None else mask.sum(dim=1, keepdim=True)
    taking, part = (2 * most, 2 * r) if mode == "energy" else (tokens, n)
    a, b = order[:, 0:taking:2], order[:, 1:taking:2]
    rank_a, rank_b = torch.arange(a.size(1), device=device), torch.arange(b.size(1), device=device)
    in_a, in_b = 2 * rank_a < part, 2 * rank_b + 1 < part
    unit = unit_rows(metric)
    edges = cosines(take_rows(unit, a), take_rows(unit, b), in_b.expand_as(b) if isinstance(lost, list) else None)
    best, to = edges.max(dim=2)
    if mode == "energy":
        first, gone, stays = n - 2 * r, in_a, torch.arange(0, taking, 2, device=device) - 2 * r
    else:
        falling = best.masked_fill(~in_a, -torch.inf).argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(falling).scatter_(1, falling, rank_a.expand_as(falling))
        first, gone, stays = (n + 1) // 2 - r, place < r, place - r
    number = (torch.arange(tokens, device=device) - 2 * r).expand_as(order)
    number = torch.empty_like(order).scatter_(1, order, number)  # protected tokens, by falling energy
    number = number.scatter(1, a, torch.where(gone, first + to, stays))
    return number.scatter(1, b, torch.where(in_b, first + rank_b, number.gather(1, b)))


def _column(value: int | list[int], device: torch.device) -> int | Tensor:
    """One number for all images, or a column ``[B, 1]`` of one for each."""
    return torch.tensor(value, device=device)[:, None] if isinstance(value, list) else value
