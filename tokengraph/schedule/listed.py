"""A rule by two lists of counts for each block, scaled to the number of patches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def scaled(kept: int, patches: int | None, num_tokens: int) -> int:
    """Patches to keep by a published count, which has the class token in it and is for ``patches`` patches.

    At least one.
    """
    if patches is None or patches == num_tokens:
        return max(kept - 1, 1)
    return max(round((kept - 1) * num_tokens / patches), 1)


@dataclass(frozen=True)
class Listed:
    """Keeps what the smaller of two lists says behind each block.

    Args:
        lists: Returns both lists; entries count the class token.
        patches: Patches for which they are.
    """

    lists: Callable[[], tuple[list[int], list[int]]]
    patches: int | None

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens removed in each block.

        Raises:
            ValueError: If lists have not one entry for each block.
        """
        prune, merge = self.lists()
        if len(prune) != depth:
            raise ValueError(f"Expected rates for each of {depth} blocks (got {len(prune)}).")
        removed, left = [], num_tokens
        for p, m in zip(prune, merge, strict=True):
            kept = min(scaled(p, self.patches, num_tokens), scaled(m, self.patches, num_tokens), left)
            removed.append(left - kept)
            left = kept
        return removed
