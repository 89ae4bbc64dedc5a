"""Computes the number of tokens after each block from a schedule of any form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real

from tokengraph.kinds import explains
from tokengraph.schedule.budget import check_layers, tokens_to_keep
from tokengraph.schedule.rules import Relative, Removal, Rule

Keep = int | float | str | tuple[str, int | float | str]
Schedule = int | Sequence[Removal] | Mapping[int, Keep] | Rule
WORDS = ("cluster", "reconstruct")
RECONSTRUCT = -1  # in a list of removals: restores all tokens


@explains
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
              of the input, ``"cluster"`` (the number ``clusters``), ``"reconstruct"`` (restores all tokens), or a pair
              ``("reconstruct", keep)`` (restores all tokens, and some leave again at once);
            * a callable ``(depth, num_tokens) -> removed``, such as :func:`~tokengraph.schedule.rules.linear` and
              :func:`~tokengraph.schedule.rules.ratio` return;
            * :func:`~tokengraph.schedule.rules.relative`: shares of the current tokens.
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
    return _removed(removals(schedule, depth, num_tokens), num_tokens, least)


@explains
def returning(schedule: Schedule, depth: int, num_tokens: int) -> frozenset[int]:
    """Layers at which every token comes back before some leave again; arguments as for :func:`tokens_per_layer`."""
    if isinstance(schedule, Mapping):
        return frozenset(int(layer) for layer, keep in schedule.items() if isinstance(keep, tuple))
    removed = removals(schedule, depth, num_tokens)
    return frozenset(layer for layer, r in enumerate(removed, 1) if isinstance(r, tuple))


def removals(schedule: Schedule, depth: int, num_tokens: int) -> list[Removal]:
    """Returns the tokens removed in each block by a schedule that is no mapping; errors as `tokens_per_layer`."""
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
    check_layers(schedule, depth)
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
