"""How many visual tokens remain: known before any feature, as servers need it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

from tokengraph.kinds import explains
from tokengraph.schedule.budget import tokens_to_keep


def check_keep(keep: int | float) -> None:
    """Raises unless ``keep`` is a share in (0, 1] or a number of tokens from 1 on.

    Raises:
        ValueError: If it is out of range.
        TypeError: If it is no number.
    """
    if isinstance(keep, bool) or not isinstance(keep, Integral | Real):
        raise TypeError(f"Expected keep as a share (float) or a number of tokens (int) (got {keep!r}).")
    if isinstance(keep, Integral):
        if keep < 1:
            raise ValueError(f"Expected keep >= 1 tokens an image (got keep={keep}).")
    elif not 0.0 < float(keep) <= 1.0:  # NaN fails too
        raise ValueError(f"Expected keep as a share in (0, 1], or an int (got keep={keep}).")


@explains
def retained_count(n: int, keep: int | float) -> int:
    """Number of tokens that remain of an image with ``n``.

    Args:
        n: Visual tokens of the image.
        keep: A share in (0, 1], rounded up; or a number of tokens, of which at most ``n`` remain.

    Returns:
        The count that :func:`tokengraph.vlm.reduce` and :func:`tokengraph.vlm.retention_mask` keep of one tile.

    Raises:
        ValueError: If ``keep`` is out of range, or ``n`` is negative.

    Example:
        >>> retained_count(576, 0.25), retained_count(576, 64), retained_count(9, 64)
        (144, 64, 9)
    """
    check_keep(keep)
    if n < 0:
        raise ValueError(f"Expected n >= 0 tokens (got n={n}).")
    return tokens_to_keep(keep, n) if n else 0


def split_budget(keep: int | float, tiles: Sequence[int]) -> list[int]:
    """Tokens that remain of each tile of one image.

    A share applies to each tile. A number of tokens is divided over the tiles in proportion to theirs, largest
    remainders first, at least one each.

    Raises:
        ValueError: If the number of tokens is below the number of tiles.
    """
    if not isinstance(keep, Integral) or len(tiles) == 1:
        return [retained_count(n, keep) for n in tiles]
    total, budget = sum(tiles), min(int(keep), sum(tiles))
    if budget < len(tiles):
        raise ValueError(
            f"Expected keep >= {len(tiles)} tokens, one for each tile or frame of the image (got keep={keep}). "
            "Choose across tiles with across=True."
        )
    spare = budget - len(tiles)
    exact = [spare * (n - 1) / max(total - len(tiles), 1) for n in tiles]
    each = [1 + int(e) for e in exact]
    order = sorted(range(len(tiles)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in order[: budget - sum(each)]:
        each[i] += 1
    return each
