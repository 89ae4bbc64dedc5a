"""Layers and counts of strategies that bring their own schedule."""

from __future__ import annotations

from collections.abc import Sequence


def own_layers(layers: Sequence[int] | None, depth: int, *, inside: bool) -> tuple[int, ...]:
    """Returns the layers to act at, as numbers of finished blocks, for a model of ``depth`` blocks.

    Args:
        layers: The user's; ``None``: a quarter, a half and three quarters of the depth.
        depth: Blocks in the model.
        inside: Whether the strategy acts inside or behind the block that begins there: one more is finished then.

    Raises:
        ValueError: If layers do not rise, or lie outside the model.
    """
    last = depth if inside else depth - 1
    if layers is None:
        return tuple(sorted({min(max(1, depth * s // 4) + inside, last) for s in (1, 2, 3)}))
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < inside or layers[-1] > last:
        raise ValueError(f"Expected rising layers in [{int(inside)}, {last}] (got {list(layers)}).")
    return tuple(int(layer) for layer in layers)


def removing(removed: int, layers: Sequence[int], depth: int) -> list[int]:
    """Returns the list schedule that removes so many tokens at each of ``layers``."""
    return [removed if layer + 1 in layers else 0 for layer in range(depth)]
