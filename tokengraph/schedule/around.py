"""Token counts inside blocks, for strategies that reduce tokens around a module and bring them back behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokengraph.kinds import explains
from tokengraph.schedule.budget import check_layers, tokens_to_keep
from tokengraph.schedule.counts import Schedule, removals
from tokengraph.schedule.rules import Relative


@explains
def tokens_around(
    schedule: Schedule,
    depth: int,
    num_tokens: int,
    fewest: Callable[[int], int] | None = None,
    *,
    clusters: int | None = None,
) -> list[int]:
    """Computes how many patch tokens each block's module runs on, where all of them return behind it.

    Args:
        schedule: As for :func:`~tokengraph.schedule.counts.tokens_per_layer`, but blocks do not add up: an int or a
            list removes that many of all tokens in each block, and a mapping ``{l: keep}`` keeps ``keep`` in every
            block from the one that follows l finished blocks on, until another entry; ``"reconstruct"`` keeps all.
        depth: Blocks in the model.
        num_tokens: Patch tokens per image.
        fewest: As for :func:`~tokengraph.schedule.counts.tokens_per_layer`.
        clusters: The number of tokens for ``"cluster"``.

    Returns:
        ``depth`` counts, one for each block.

    Raises:
        ValueError: If a key is outside ``[0, depth - 1]``, a list has the wrong length, or an entry cannot be reached.
        TypeError: If it is no schedule.

    Example:
        >>> tokens_around(4, 3, 16), tokens_around({1: 0.5, 2: "reconstruct"}, 3, 16)
        ([12, 12, 12], [16, 8, 16])
    """
    least = fewest or (lambda n: min(1, n))
    if isinstance(schedule, Relative):
        schedule = schedule.kept(num_tokens)
    if not isinstance(schedule, Mapping):
        gone = [r[1] if isinstance(r, tuple) else max(r, 0) for r in removals(schedule, depth, num_tokens)]
        return [max(num_tokens - r, least(num_tokens)) for r in gone]
    check_layers(schedule, depth - 1)
    counts, now = [], num_tokens
    for layer in range(depth):
        if layer in schedule:
            now = _kept(schedule[layer], layer, num_tokens, least, clusters)
        counts.append(now)
    return counts


def _kept(wanted: object, layer: int, num_tokens: int, least: Callable[[int], int], clusters: int | None) -> int:
    if isinstance(wanted, tuple):
        wanted = wanted[-1]
    if wanted == "reconstruct":
        return num_tokens
    if wanted == "cluster" and clusters is not None:
        wanted = clusters
    if isinstance(wanted, str):
        raise ValueError(f"Expected an int, a share or 'reconstruct' (got {wanted!r} at layer {layer}).")
    keep = tokens_to_keep(wanted, num_tokens)  # type: ignore[arg-type]
    if keep < least(num_tokens):
        raise ValueError(
            f"Expected keep >= {least(num_tokens)} of {num_tokens} tokens at layer {layer} (got keep={keep}): this "
            "strategy cannot remove more in one step."
        )
    return keep
