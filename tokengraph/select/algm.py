"""ALGM: small windows whose tokens are alike merge first, then the most similar pairs of the whole image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_grid, check_mask, check_positive, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.choices.edges import Halves, contract_halves, count_merges
from tokengraph.select.parts.choices.roots import all_single
from tokengraph.select.parts.scores.windows import window_members, window_similarity
from tokengraph.select.threshold import ThresholdSelect
from tokengraph.select.tokens import Tokens, clamp_budget

SLACK = 1e-6  # so that equal tokens merge, however their cosines and the mean of these round
RELEASED = {
    "vit_tiny": (0.88, (1, 5)),
    "vit_small": (0.88, (1, 5)),
    "vit_base": (0.94, (1, 5)),
    "vit_large": (0.95, (1, 7)),
}


@explains
def algm_local(
    x: Tensor, grid: tuple[int, ...], tau: float, *, window: tuple[int, int] = (2, 2), keep: int | list[int] = 1
) -> Assignment:
    r"""Merges every window whose tokens have a mean cosine of at least ``tau``.

    Windows lie side by side, and :math:`q_w` is the mean cosine of two different tokens of window w, see
    :func:`~tokengraph.select.parts.scores.windows.window_similarity`.

    Args:
        x: Tokens of the full grid, ``[B, N, C]``; published: between attention and MLP of the first block.
        grid: ``(H, W)``, any rectangle; ``(T, H, W)``: windows lie within frames.
        tau: The threshold.
        window: Height and width. Tokens of incomplete windows at the right and lower border stay single.
        keep: The fewest clusters that an image may have left; windows that are less alike then stay.

    Returns:
        The map over ``B*N`` tokens, clusters in the published order, over which :func:`algm_global` alternates: merged
        windows by falling :math:`q_w`, then all other tokens in raster order.

    Raises:
        ValueError: If ``keep`` is below 1, the grid does not fit, the window has one token, or tokens are not finite.

    Cost: ``O(B N C)``; one host synchronisation, for the counts.

    Example:
        >>> x = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]])
        >>> algm_local(x, (1, 4), 0.9, window=(1, 2)).cluster.tolist()
        [0, 1, 2, 3]
        >>> algm_local(x[:, [0, 1, 2, 1]], (1, 4), 0.9, window=(1, 2)).cluster.tolist()
        [1, 2, 0, 0]

    Source: Norouzi et al., *ALGM: Adaptive Local-then-Global Token Merging*, CVPR 2024, and its code. Differs: all
    windows above the threshold merge (published: in every image as many as in the image of the batch with the fewest),
    any rectangle (published: sides that the window divides).
    """
    check_tokens(x)
    grid = check_grid(grid, x.size(1), video=True)
    check_finite(x)
    _check_window(window)
    return _local(x, grid, tau, window, keep)


@explains
def algm_global(
    x: Tensor, layer: int, *, num_prefix: int = 0, keep: int | list[int] = 1, mask: Tensor | None = None
) -> Assignment:
    r"""Merges pairs between two alternating sets that are more similar than usual in their image.

    With :math:`v_a` the best cosine of each token of A (even places of the sequence, prefix tokens counted) with one of
    B, all a merge into their best b that have

    .. math:: v_a \ge \operatorname{mean}(v) + \operatorname{std}(v) / l

    Args:
        x: Tokens, ``[B, N, C]``; published: between attention and MLP of the fifth block.
        layer: l, finished blocks.
        num_prefix: Prefix tokens in front of the sequence: they take part in the alternation, in nothing else.
        keep: The fewest clusters that an image may have left; the pairs that are less similar then stay.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``): unmerged tokens of A by index, then those of B. An
        image that merges nothing keeps its order.

    Raises:
        ValueError: If ``keep`` or ``layer`` is below 1, tokens are not finite or ``mask`` has holes.

    Cost: that of ``tome``, and one host synchronisation, for the counts.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0], [-1.0, 0.2], [0.3, 1.0]]])
        >>> algm_global(x, 5).cluster.tolist()
        [1, 1, 3, 2, 0, 3]

    Source: as :func:`algm_local`. Differs: threshold and count are the image's own (published: means and minimum over
    the batch), ``v_a`` within 1e-6 of the threshold merge, without prefix tokens the first token counts too, merging
    nothing is the identity (published: another order).
    """
    check_tokens(x)
    check_mask(mask, x, leading=True)
    check_finite(x if mask is None else x[mask])
    check_positive(layer=layer)
    return _global(x, layer, num_prefix, keep, mask)


@dataclass(frozen=True)
class ALGM(ThresholdSelect):
    """ALGM as a strategy, between attention and MLP; see :func:`algm_local` and :func:`algm_global`.

    Score: cosine. Graph: windows, then alternating halves. Choice: thresholds. Reduction: mean by size. The first time,
    on the full grid, windows merge; from then on pairs do. Images keep different numbers of tokens:
    ``handle.trace.counts_per_image(layer)``.

    Args:
        tau: Threshold of the windows.
        layers: Blocks that are finished then; a schedule says others.
        window: Height and width of the windows.
        official: As released: attention does not weigh merged tokens by size (means still do).
    """

    name: ClassVar[str] = "algm"
    reads: ClassVar[str] = "nothing"
    alone: ClassVar[bool] = True
    tau: float = 0.88
    layers: tuple[int, ...] = (1, 5)
    window: tuple[int, int] = (2, 2)
    official: bool = False

    def __post_init__(self) -> None:
        _check_window(self.window)

    @classmethod
    def published(cls, model: str = "vit_small") -> ALGM:
        """The released settings for ADE20K and a ``"vit_tiny"``, ``"vit_small"``, ``"vit_base"`` or ``"vit_large"``.

        Raises:
            ValueError: For another model.
        """
        if model not in RELEASED:
            raise ValueError(f"Expected model to be one of {', '.join(RELEASED)} (got {model!r}). Set tau and layers.")
        return cls(*RELEASED[model], official=True)

    def own_layers(self) -> tuple[int, ...]:
        """See :class:`~tokengraph.select.threshold.ThresholdSelect`."""
        return tuple(self.layers)

    @property
    def prop_attn(self) -> bool | str:
        """Attention weighs keys by size, but not as released; means do in both."""
        return "none" if self.official else True

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        done = tokens.layer + 1  # 0 outside a model
        if tokens.full and tokens.grid is not None:
            return _local(tokens.x, tokens.grid, self.tau, self.window, budget)
        if done and done == min(self.acting_layers):
            raise ValueError(
                f"Expected the full patch grid for the first step of ALGM (got {tokens.x.size(1)} tokens without one). "
                "In train mode the model must not drop patches."
            )
        return _global(tokens.x, done or max(self.layers), tokens.num_prefix, budget, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """That of the second step, products between the halves; the first is linear in the tokens."""
        half = num_tokens // 2
        return distance_cost(half, num_tokens - half, channels) + Cost(half * half, 4 * half * half)


def _check_window(window: tuple[int, int]) -> None:
    if len(window) != 2 or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in window):
        raise ValueError(f"Expected window as (height, width), both at least 1 (got {window!r}).")
    if window[0] * window[1] < 2:
        raise ValueError(f"Expected a window of at least two tokens (got {window!r}).")


def _local(x: Tensor, grid: tuple[int, ...], tau: float, window: tuple[int, int], keep: int | list[int]) -> Assignment:
    images, tokens = x.shape[:2]
    budget, members = clamp_budget(keep, x, None), window_members(grid, window, x.device)
    floors, each = budget if isinstance(budget, list) else [budget] * images, members.size(1)
    room = [(tokens - k) // (each - 1) for k in floors]
    if not any(room) or not members.numel():
        return all_single(x, tokens, None)
    similar = window_similarity(x, members)
    merged = similar >= tau
    order = similar.masked_fill(~merged, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.size(1), device=x.device).expand_as(order))
    merged &= rank < torch.tensor(room, device=x.device)[:, None]
    flat, windows = members.flatten(), merged.sum(dim=1)
    inside = torch.zeros(images, tokens, dtype=torch.bool, device=x.device)
    inside[:, flat] = merged.repeat_interleave(each, dim=1)
    number = windows[:, None] + (~inside).cumsum(dim=1) - 1
    number[:, flat] = torch.where(inside[:, flat], rank.repeat_interleave(each, dim=1), number[:, flat])
    return Assignment.from_dense(number, [tokens - w * (each - 1) for w in windows.tolist()])


def _global(x: Tensor, layer: int, num_prefix: int, keep: int | list[int], mask: Tensor | None) -> Assignment:
    first = num_prefix % 2
    most, kept = count_merges(x, keep, first, mask)
    most, kept = ([v] * x.size(0) if isinstance(v, int) else v for v in (most, kept))
    if not any(most):
        return all_single(x, kept, mask)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        halves = Halves.of(x, first, mask)
        best, in_a = halves.best, torch.ones_like(halves.best) if mask is None else mask[:, first::2].float()
        count = in_a.sum(dim=1, keepdim=True)
        best = torch.where(in_a > 0, best, 0.0)
        mean = best.sum(dim=1, keepdim=True) / count
        spread = ((best - mean).square() * in_a).sum(dim=1, keepdim=True) / (
            count - 1
        )  # NaN for one token: none merges
        above = (best >= mean + spread.sqrt() / layer - SLACK) & (in_a > 0)
        merged = [min(n, m) for n, m in zip(above.sum(dim=1).tolist(), most, strict=True)]
        left = [k + m - n for k, m, n in zip(kept, most, merged, strict=True)]
        return contract_halves(halves, merged, left, mask, by_index=True)
