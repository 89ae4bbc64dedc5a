"""Schedules: the number of tokens after each block. The functions return rules for ``attach``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

Removal = int | tuple[int, int]
Keep = int | float | str | tuple[str, int | float | str]
Rule = Callable[[int, int], Sequence[Removal]]
Schedule = int | Sequence[Removal] | Mapping[int, Keep] | Rule
WORDS = ("cluster", "reconstruct")
RECONSTRUCT = -1  # in a list of removals: restores all tokens


def constant(removed: int) -> Rule:
    """Removes the same number of tokens in every block (ToMe's ``r``), as the int ``removed`` does by itself.

    Args:
        removed: Tokens removed in each block, at least 0.
    """
    return _Constant(removed)


def linear(removed: int) -> Rule:
    """Removes ``2 * removed`` tokens in the first block and linearly fewer down to none in the last one.

    The total is about that of :func:`constant`.

    Args:
        removed: Mean number of tokens removed in each block, at least 0.

    Source: the decreasing schedule of ToMe (Bolya et al., ICLR 2023).
    """
    return _Linear(removed)


def ratio(keep: float, *, prefix: int = 0) -> Rule:
    """Keeps the share ``keep`` of the current tokens in every block, rounded up.

    Args:
        keep: A share in (0, 1].
        prefix: Prefix tokens that the share counts too, as the code of some methods does (ToFu): of T tokens with them,
            ``floor(T - T * keep)`` leave.
    """
    return _Ratio(keep, prefix)


def powers(keep: float, layers: Sequence[int]) -> Rule:
    """Keeps ``int(N * keep)`` of the N input tokens at the first of ``layers``, ``int(N * keep ** 2)`` at the second...

    Args:
        keep: A share in (0, 1].
        layers: Numbers of finished blocks, rising.

    Raises:
        ValueError: If ``keep`` is out of range or a layer below 1.

    Example:
        >>> tokens_per_layer(powers(0.7, (1, 2, 3)), 4, 64)
        [64, 44, 31, 21, 21]

    Source: the schedule of TokenReduction (Haurum et al., ICCV workshop 2023) and of ATC (ECCV 2024): layers (3, 6, 9).
    """
    tokens_to_keep(float(keep), 1)
    if list(layers) != sorted(set(layers)) or any(layer < 1 for layer in layers):
        raise ValueError(f"Expected rising layers of at least 1 (got {list(layers)}). Layer l: l blocks are finished.")
    return _Powers(float(keep), tuple(layers))


def relative(keep: Mapping[int, float]) -> Relative:
    """Keeps shares of the current tokens, not of the input: ``{3: 0.7, 6: 0.7}`` keeps 70 %, then 49 %.

    Args:
        keep: ``{l: share}``: after l finished blocks, keep this share in (0, 1] of the tokens, rounded up.

    Raises:
        ValueError: If a layer is below 1 or a share out of range.
        TypeError: If a share is no float.

    Example:
        >>> tokens_per_layer(relative({1: 0.5, 3: 0.5}), 4, 196)
        [196, 98, 98, 49, 49]
    """
    for layer, share in keep.items():
        if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 1:
            raise ValueError(f"Expected layers of at least 1 (got {layer!r}). Layer l means: l blocks are finished.")
        if isinstance(share, bool) or not isinstance(share, Real) or isinstance(share, Integral):
            raise TypeError(f"Expected shares as floats in (0, 1] (got {share!r} at layer {layer}).")
        tokens_to_keep(float(share), 1)
    return Relative(tuple((int(layer), float(share)) for layer, share in sorted(keep.items())))


# Classes, not closures, so that a model with its schedule can be pickled.
@dataclass(frozen=True)
class _Constant:
    removed: int

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        return [self.removed] * depth


@dataclass(frozen=True)
class _Linear:
    removed: int

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        if depth == 1:
            return [self.removed]
        step = 2 * self.removed / (depth - 1)
        return [int(2 * self.removed - step * i) for i in range(depth)]


@dataclass(frozen=True)
class _Ratio:
    keep: float
    prefix: int = 0

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        removed, left = [], num_tokens
        for _ in range(depth):
            if self.prefix:
                whole = left + self.prefix
                removed.append(min(int(whole - whole * self.keep), left))
            else:
                removed.append(left - tokens_to_keep(float(self.keep), left))
            left -= removed[-1]
        return removed


@dataclass(frozen=True)
class _Powers:
    keep: float
    layers: tuple[int, ...]

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        if any(layer > depth for layer in self.layers):
            raise ValueError(f"Expected layers in [1, {depth}] (got {list(self.layers)}).")
        removed, left = [0] * depth, num_tokens
        for power, layer in enumerate(self.layers, 1):
            kept = max(min(int(num_tokens * self.keep**power), left), 1)
            removed[layer - 1], left = left - kept, kept
        return removed


@dataclass(frozen=True)
class Relative:
    """Shares of the current tokens, in order of layers; see :func:`relative`."""

    shares: tuple[tuple[int, float], ...]

    def kept(self, num_tokens: int) -> dict[int, int]:
        """Returns the schedule ``{l: tokens}`` for ``num_tokens`` input tokens."""
        kept = {}
        for layer, share in self.shares:
            num_tokens = tokens_to_keep(share, num_tokens)
            kept[layer] = max(num_tokens, 1)  # a budget is at least 1, also for an image without tokens
        return kept

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens removed in each block."""
        counts = tokens_per_layer(self, depth, num_tokens)
        return [before - after for before, after in zip(counts[:-1], counts[1:], strict=True)]


def warn_of_idle(schedule: object, plan: Sequence[int], *, stacklevel: int = 4) -> None:
    """Warns if entries of a schedule ``{l: keep}`` remove nothing, unless they are 1.0.

    Args:
        schedule: The user's schedule; other kinds have no entries.
        plan: Tokens before the first block and after each block.
        stacklevel: As for ``warnings.warn``; the default points to the caller of ``attach``.
    """
    if not isinstance(schedule, Mapping):
        return
    idle = [
        layer
        for layer, keep in sorted(schedule.items())
        if layer and not isinstance(keep, str | tuple) and keep != 1.0 and plan[layer] == plan[layer - 1]
    ]
    if idle:
        warnings.warn(
            f"The schedule removes nothing at layers {idle}: its numbers count input tokens, or are shares of them "
            f"(tokens: {list(plan)}). For shares of the current tokens: "
            "tokengraph.schedule.relative({3: 0.7, 6: 0.7, 9: 0.7}).",
            stacklevel=stacklevel,
        )


def tokens_per_layer(
    schedule: Schedule,
    depth: int,
    num_tokens: int,
    fewest: Callable[[int], int] | None = None,
    *,
    clusters: int | None = None,
) -> list[int]:
    """Computes the token counts of a schedule for a model of ``depth`` blocks and ``num_tokens`` patch tokens.

    Args:
        schedule: One of

            * an int: removes this many tokens in every block;
            * a sequence of ``depth`` ints: the tokens removed in each block (``RECONSTRUCT`` restores all
              tokens, ``(RECONSTRUCT, removed)`` also removes some again);
            * a mapping ``{l: keep}``: keeps ``keep`` tokens after l finished blocks. ``keep`` is an int, a float share
              of the input, ``"cluster"`` (the number ``clusters``) or ``"reconstruct"`` (restores all tokens);
            * a callable ``(depth, num_tokens) -> removed``, such as :func:`linear` and :func:`ratio` return;
            * :func:`relative`: shares of the current tokens.
        depth: Blocks in the model.
        num_tokens: Patch tokens per image at the input.
        fewest: A function of n tokens that returns the fewest clusters that one step can reach. Removals are clamped to
            it; a mapping that asks for fewer is an error.
        clusters: The number of tokens for ``"cluster"``.

    Returns:
        ``depth + 1`` counts: tokens before the first block, then after each block.

    Raises:
        ValueError: If a key is outside ``[0, depth]``, a list has the wrong length, a removal is negative, or counts
            rise.
        TypeError: If it is no schedule.

    Example:
        >>> tokens_per_layer({2: 0.25}, 4, 196)
        [196, 196, 49, 49, 49]
        >>> tokens_per_layer(50, 4, 196)
        [196, 146, 96, 46, 1]
        >>> tokens_per_layer({1: "cluster", 3: "reconstruct"}, 4, 196, clusters=64)
        [196, 64, 64, 196, 196]
        >>> tokens_per_layer({1: 0.5, 2: ("reconstruct", 0.75), 4: "reconstruct"}, 4, 196)
        [196, 98, 147, 147, 196]
    """
    least = fewest or (lambda n: min(1, n))
    if isinstance(schedule, Relative):
        schedule = schedule.kept(num_tokens)
    if isinstance(schedule, Mapping):
        return _kept(schedule, depth, num_tokens, least, clusters)
    return _removed(_removals(schedule, depth, num_tokens), num_tokens, least)


def returning(schedule: Schedule, depth: int, num_tokens: int) -> frozenset[int]:
    """Layers at which every token comes back before some leave again; arguments as for :func:`tokens_per_layer`."""
    if isinstance(schedule, Mapping):
        return frozenset(int(layer) for layer, keep in schedule.items() if isinstance(keep, tuple))
    removed = _removals(schedule, depth, num_tokens)
    return frozenset(layer for layer, r in enumerate(removed, 1) if isinstance(r, tuple))


def _removals(schedule: Schedule, depth: int, num_tokens: int) -> list[Removal]:
    if isinstance(schedule, bool | str) or (isinstance(schedule, Real) and not isinstance(schedule, Integral)):
        raise TypeError(
            f"Expected a schedule: int removed a layer, list, or dict {{layer: keep}} (got {schedule!r}). "
            "For a share kept after layer l write {l: 0.5}."
        )
    if isinstance(schedule, Integral):
        if schedule < 0:
            raise ValueError(f"Expected removals >= 0 (got {schedule}).")
        removed: Sequence[Removal] = [int(schedule)] * depth
    elif callable(schedule):
        removed = schedule(depth, num_tokens)
    elif isinstance(schedule, Sequence):
        removed = schedule
    else:
        raise TypeError(f"Expected a schedule as int, list, dict or callable (got {type(schedule).__name__}).")
    if len(removed) != depth:
        raise ValueError(f"Expected one removal for each of {depth} blocks (got {len(removed)}).")
    for r in removed:
        r = r[1] if isinstance(r, tuple) and len(r) == 2 and r[0] == RECONSTRUCT else r
        if isinstance(r, bool) or not isinstance(r, Integral):
            raise TypeError(f"Expected removals as ints (got {r!r}). For shares write a dict {{layer: keep}}.")
        if int(r) < 0 and int(r) != RECONSTRUCT:
            raise ValueError(f"Expected removals >= 0 (got {r}).")
    return [r if isinstance(r, tuple) else int(r) for r in removed]


def _removed(removed: Sequence[Removal], num_tokens: int, least: Callable[[int], int]) -> list[int]:
    counts = [num_tokens]
    for r in removed:
        left, r = (num_tokens, r[1]) if isinstance(r, tuple) else (counts[-1], r)
        counts.append(num_tokens if r == RECONSTRUCT else max(left - r, least(left)))
    return counts


def _kept(
    schedule: Mapping[int, Keep],
    depth: int,
    num_tokens: int,
    least: Callable[[int], int],
    clusters: int | None,
) -> list[int]:
    for layer in schedule:
        if isinstance(layer, bool) or not isinstance(layer, Integral) or not 0 <= layer <= depth:
            raise ValueError(f"Expected layers in [0, {depth}] (got {layer!r}). Layer l means: l blocks are finished.")
    counts, left, asked = [], num_tokens, False
    for layer in range(depth + 1):
        if layer in schedule:
            wanted = schedule[layer]
            back = isinstance(wanted, tuple) or wanted == "reconstruct"
            if back and not asked:  # checks the request, not the counts: a small image may have nothing to reduce
                raise ValueError(f"Expected something to reconstruct at layer {layer} (got all {left} tokens).")
            if isinstance(wanted, tuple):
                wanted, left = _after_return(wanted, layer), num_tokens
            asked = wanted != "reconstruct"
            left = _left(wanted, layer, left, num_tokens, least, clusters)
        counts.append(left)
    return counts


def _after_return(pair: tuple[str, int | float | str], layer: int) -> int | float | str:
    """What stays of all tokens by a pair ``("reconstruct", keep)``."""
    if len(pair) != 2 or pair[0] != "reconstruct" or pair[1] == "reconstruct":
        raise ValueError(f'Expected a pair ("reconstruct", keep) (got {pair!r} at layer {layer}).')
    return pair[1]


def _left(
    wanted: int | float | str, layer: int, left: int, num_tokens: int, least: Callable[[int], int], clusters: int | None
) -> int:
    """Returns the number of tokens after a layer for which a mapping asks for ``wanted``."""
    if wanted == "reconstruct":
        return num_tokens
    if wanted == "cluster":
        if clusters is None:
            raise ValueError(
                f"Expected a strategy with its own number of clusters for 'cluster' at layer {layer} (got none). "
                "Give a number of tokens or a share, or a strategy such as Expedite(clusters=(h, w))."
            )
        wanted = min(clusters, num_tokens)
    elif isinstance(wanted, str):
        raise ValueError(f"Expected one of {', '.join(WORDS)}, an int or a share (got {wanted!r} at layer {layer}).")
    keep = tokens_to_keep(wanted, num_tokens)
    if keep > left:
        raise ValueError(f"Expected at most the {left} tokens left at layer {layer} (got keep={keep}).")
    if keep < least(left):
        raise ValueError(
            f"Expected keep >= {least(left)} of {left} tokens at layer {layer} (got keep={keep}): this "
            "strategy cannot remove more in one step. Spread the removal over several layers."
        )
    return keep


def tokens_to_keep(keep: int | float, num_tokens: int) -> int:
    """Converts a budget to a number of tokens, at most ``num_tokens``.

    Args:
        keep: An int, or a ratio in (0, 1], which gives ``max(1, ceil(ratio * N))``.
        num_tokens: N.

    Returns:
        The number of tokens, ``min(keep, N)``.

    Raises:
        ValueError: If an int is below 1 or a ratio outside (0, 1].
        TypeError: If it is neither.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"Expected keep as an int or a float ratio (got {keep!r}).")
    if not isinstance(keep, Integral):
        if not 0 < keep <= 1:
            raise ValueError(f"Expected a keep ratio in (0, 1] (got keep={keep}). Give a count as an int.")
        keep = max(1, math.ceil(float(keep) * num_tokens))
    if keep < 1:
        raise ValueError(f"Expected keep >= 1 tokens per image (got keep={keep}).")
    return min(int(keep), num_tokens)
