"""Which blocks the intermediate features of timm and open_clip come from."""

from __future__ import annotations


def taken(indices: int | list[int] | None, depth: int) -> list[int]:
    """Finished blocks at each intermediate, in the order that timm returns them."""
    if indices is None:
        return list(range(1, depth + 1))
    chosen = range(depth - indices, depth) if isinstance(indices, int) else [i % depth for i in indices]
    return [i + 1 for i in sorted(set(chosen))]
