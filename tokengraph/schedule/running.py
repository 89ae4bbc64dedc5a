"""A rule for strategies around blocks: how many tokens run in each block, as shares of the input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Running:
    """Runs ``int(N * share)`` of the N input tokens in some blocks, at least one, and all in the others.

    Args:
        shares: ``(block, share)``, blocks from 0.
    """

    shares: tuple[tuple[int, float], ...]

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens that idle in each block."""
        idle = [0] * depth
        for block, share in self.shares:
            idle[block] = num_tokens - min(max(int(num_tokens * share), 1), num_tokens)
        return idle


def in_stages(keep: float, layers: tuple[int, ...], stages: int = 3) -> tuple[float, ...]:
    """Shares ``keep``, ``keep**2``, ... for equal stretches of ``layers``; the last stretch may be longer."""
    each = max(len(layers) // stages, 1)
    return tuple(keep ** (min(i // each, stages - 1) + 1) for i in range(len(layers)))
