"""A rule by stages of blocks, in front of which tokens leave and behind which they come back."""

from __future__ import annotations

from dataclasses import dataclass

from tokengraph.schedule.counts import RECONSTRUCT
from tokengraph.schedule.rules import Removal


@dataclass(frozen=True)
class Stages:
    """Runs ``int(N * share)`` of the N input tokens in each stage, at least one.

    Args:
        stages: ``(start, stop, share)`` in turn, blocks from 0, start at least 1.
        more: Tokens that run besides, such as a summary; none where all run.
        last: Whether tokens come back behind a stage that ends with the model.
    """

    stages: tuple[tuple[int, int, float], ...]
    more: int = 0
    last: bool = True

    def __call__(self, depth: int, num_tokens: int) -> list[Removal]:
        """Returns the tokens removed behind each block, with returns."""
        removed: list[Removal] = [0] * depth
        away = False
        ends = {stop for _, stop, _ in self.stages}
        for start, stop, share in self.stages:
            gone = num_tokens - min(max(int(num_tokens * share), 1) + self.more, num_tokens)
            removed[start - 1] = (RECONSTRUCT, gone) if away and start in ends else gone
            away = gone > 0
            if away and (stop < depth or self.last):
                removed[stop - 1] = RECONSTRUCT
        return removed
