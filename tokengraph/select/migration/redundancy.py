"""The functions of token migration, after Fast-iTPN; its authors published no code, so the definition is our own.

Redundant tokens skip later blocks and return from stored features, without attention. These are pure functions; models
and the strategy decide where to call them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_finite, check_tokens
from tokengraph.flat.layout import take_rows
from tokengraph.flat.segment import as_type, wide
from tokengraph.flat.tables import table

REPLENISH = ("identity", "zero", "twin_copy", "twin_delta")


class Redundant(NamedTuple):
    """The kept and dropped tokens, as indices into the given tokens."""

    keep: Tensor  # [B, n - r] int64, ascending
    dropped: Tensor  # [B, r] int64, most redundant first
    twin: Tensor  # [B, r] int64: the kept token that each dropped one resembles most
    score: Tensor  # [B, r]: cosine of the two


class Departure(NamedTuple):
    """One step that drops tokens."""

    layer: int  # counted from 1
    choice: Redundant
    ids: Tensor  # [B, n] int64 grid ids before the step, ascending
    tokens: Tensor  # [B, n, C] the block's output, before the step


def tokens_to_drop(num_tokens: int, keep_ratio: float) -> int:
    r"""Returns the number of n tokens to drop at a keep ratio.

    .. math:: r = \min(n - \max(1, \lceil \rho n \rceil),\; \lceil n / 2 \rceil)

    At most half, because only every other token may be dropped; none for a ratio of 1 or more.

    Example:
        >>> tokens_to_drop(196, 0.7), tokens_to_drop(7, 0.2), tokens_to_drop(1, 0.1)
        (58, 4, 0)

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    stay = max(1, math.ceil(keep_ratio * num_tokens - 1e-6))
    return at_most_half(num_tokens, num_tokens - stay)


def at_most_half(num_tokens: int, removed: int) -> int:
    """Clamps ``removed`` to the range of one step, ``0`` to ``ceil(n / 2)``; a single token always stays."""
    return max(0, min(removed, (num_tokens + 1) // 2, num_tokens - 1))


def redundant_tokens(keys: Tensor, removed: int, *, grid: tuple[int, ...] | None = None) -> Redundant:
    r"""Finds the tokens that most resemble a kept one.

    Tokens at even indices form A, those at odd indices B. With :math:`\bar k` the keys' mean over heads:

    .. math:: s_i = \max_{j \in B} \cos(\bar k_i, \bar k_j), \quad i \in A

    The ``removed`` tokens of A with the largest score are dropped. Ties go to the lower index.

    Args:
        keys: Keys ``[B, n, H, D]``, or any features ``[B, n, C]``.
        removed: r, at most ``ceil(n / 2)``; a single token always stays.
        grid: ``(H, W)`` of all n tokens: A are the black cells of a checkerboard instead of the even indices.

    Returns:
        :class:`Redundant`.

    Raises:
        ValueError: If keys are not finite, ``removed`` is out of range, or the grid does not have n cells.
        TypeError: If keys are not a floating-point tensor.

    Cost: ``O(B n^2 D / 4)`` time, ``B n^2 / 4`` floats. The check for finite keys waits for the device.

    Example:
        >>> redundant_tokens(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 2.0], [2.0, 2.0]]]), 1).dropped.tolist()
        [[2]]

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024). The similarity is that of ToMe
    (Bolya et al., ICLR 2023), before its averaging. A zero key has cosine 0 with everything.
    """
    check_tokens(keys, dims=(3, 4), name="keys")
    check_finite(keys, "keys")
    count = keys.size(1)
    if not 0 <= removed <= at_most_half(count, count):
        raise ValueError(f"Expected 0 <= removed <= {at_most_half(count, count)} of n={count} (got {removed}).")
    if grid is not None and math.prod(grid) != count:
        raise ValueError(f"Expected a grid of n={count} tokens (got {' x '.join(map(str, grid))}).")
    return pick_redundant(keys, removed, grid)


def pick_redundant(keys: Tensor, removed: int, grid: tuple[int, ...] | None = None) -> Redundant:
    """Like :func:`redundant_tokens`, without its checks, which would wait for the device."""
    images, count = keys.shape[:2]
    if removed == 0:
        none = torch.empty(images, 0, dtype=torch.long, device=keys.device)
        everyone = torch.arange(count, device=keys.device).expand(images, count)
        return Redundant(everyone, none, none, keys.new_empty(images, 0, dtype=wide(keys)))
    with torch.no_grad(), torch.autocast(keys.device.type, enabled=False):
        features = as_type(keys.detach(), wide(keys))
        unit = F.normalize(features.mean(dim=2) if keys.dim() == 4 else features, dim=-1)
        if grid is None:
            a, b = unit[:, 0::2], unit[:, 1::2]
        else:
            black, white = _checkerboard(str(keys.device), *grid)
            a, b = unit.index_select(1, black), unit.index_select(1, white)
        cosine = torch.matmul(a, b.transpose(1, 2))
        best = cosine.amax(dim=2)
        leaving = best.argsort(dim=1, descending=True, stable=True)[:, :removed]
        score = best.gather(1, leaving)
        partner = _first_best(cosine, best).gather(1, leaving)
        dropped = 2 * leaving if grid is None else black[leaving]
        twin = 2 * partner + 1 if grid is None else white[partner]
        gone = torch.zeros(images, count, dtype=torch.uint8, device=keys.device).scatter(1, dropped, 1)
        keep = gone.argsort(dim=1, stable=True)[:, : count - removed]
    return Redundant(keep, dropped, twin, score)


def _first_best(rows: Tensor, best: Tensor) -> Tensor:
    """Returns the first index of each row's maximum, in a third of argmax's time.

    ``[B, k, n]`` and ``[B, k]`` to ``[B, k]``. Overwrites ``rows``: entries below the maximum get a very low value, and
    entries equal to it get minus their index.
    """
    width = rows.size(2)
    place = torch.arange(width, device=rows.device, dtype=rows.dtype)
    first = rows.sub_(best[..., None]).sign_().mul_(width).sub_(place).amax(dim=2)
    return first.neg_().long().clamp_(0, width - 1)  # within bounds for NaN too


@table(32)
def _checkerboard(device: str, *sides: int) -> tuple[Tensor, Tensor]:
    white = (torch.cartesian_prod(*map(torch.arange, sides)).sum(dim=1) % 2).bool()
    return (~white).nonzero().flatten().to(device), white.nonzero().flatten().to(device)


def replenish(tokens: Tensor, ids: Tensor, steps: Sequence[Departure], rule: str = "identity") -> Tensor:
    r"""Restores every dropped token at its grid position.

    ``"identity"`` restores its last value, ``"zero"`` zeros, ``"twin_copy"`` its twin's final value, and
    ``"twin_delta"`` its last value plus the change of its twin since then.

    .. math:: Z = S_T X_T + \sum_t (I - S_t S_t^\top)\, S_{t-1} X^{(l_t)} \quad \text{(identity)}

    Args:
        tokens: Tokens kept to the end, ``[B, n, C]``.
        ids: Their grid ids ``[B, n]``.
        steps: The steps that dropped tokens, first to last.
        rule: One of ``REPLENISH``. A twin that was dropped later itself is restored first.

    Returns:
        ``[B, N, C]`` in grid order. Every row is written exactly once. Gradients reach values, not indices.

    Raises:
        ValueError: If ``rule`` is unknown.

    Cost: two copies of the result.

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    if rule not in REPLENISH:
        raise ValueError(f"Expected replenish to be one of {', '.join(REPLENISH)} (got {rule!r}).")
    if not steps:
        return tokens
    rows, order = [tokens], [ids]
    for step in reversed(steps):
        dropped, twin = step.choice.dropped, step.choice.twin
        left = take_rows(step.tokens, dropped)
        if rule == "zero":
            left = torch.zeros_like(left)
        elif rule != "identity":
            place = _inverse(torch.cat(order, dim=1), steps[0].ids.size(1))
            settled = take_rows(torch.cat(rows, dim=1), place.gather(1, step.ids.gather(1, twin)))
            left = settled if rule == "twin_copy" else left + settled - take_rows(step.tokens, twin)
        rows.append(left)
        order.append(step.ids.gather(1, dropped))
    return take_rows(torch.cat(rows, dim=1), _inverse(torch.cat(order, dim=1), steps[0].ids.size(1)))


def _inverse(order: Tensor, count: int) -> Tensor:
    """Returns the index of each id in ``order [B, k]``: ``[B, count]``; missing ids get 0."""
    place = torch.arange(order.size(1), device=order.device).expand_as(order)
    return torch.zeros(order.size(0), count, dtype=torch.long, device=order.device).scatter(1, order, place)


def departures(steps: Sequence[Departure], ids: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Returns the layer that dropped each position, and its twin.

    Args:
        steps: The steps that dropped tokens.
        ids: Kept grid ids ``[B, n]``; they give the batch size and the device.
        num_tokens: N.

    Returns:
        ``left_at [B, N]``: the layer, from 1, that dropped it, 0 for never; ``twin [B, N]``: grid id, -1 for none.

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    left_at = torch.zeros(ids.size(0), num_tokens, dtype=torch.long, device=ids.device)
    twin = torch.full_like(left_at, -1)
    for step in steps:
        gone = step.ids.gather(1, step.choice.dropped)
        left_at = left_at.scatter(1, gone, step.layer)
        twin = twin.scatter(1, gone, step.ids.gather(1, step.choice.twin))
    return left_at, twin
