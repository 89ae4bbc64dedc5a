"""Random pruning, the control that every score must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_mask
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.parts.scores.random import random_score
from tokengraph.select.tokens import Tokens


def random_prune(
    num_images: int,
    num_tokens: int,
    keep: int | list[int],
    *,
    seed: int = 0,
    mask: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Assignment:
    """Keeps ``keep`` random tokens an image, in order, at the same indices in every image.

    Args:
        num_images: B.
        num_tokens: N.
        keep: Tokens an image, at least 1.
        seed: Calls with one seed keep the same tokens.
        mask: ``[B, N]`` bool, True where there is a token.
        device: Device of the map.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``).
    """
    score = random_score(num_tokens, seed, device=device).expand(num_images, -1)
    check_mask(mask, score)
    return keep_best(score, keep, mask)


@dataclass(frozen=True)
class Random(Select):
    """Random pruning as a strategy, between attention and MLP.

    Args:
        seed: Equal seeds keep equal tokens; each layer draws new ones.
    """

    name: ClassVar[str] = "random"
    reads: ClassVar[str] = "nothing"
    merges: ClassVar[bool] = False
    seed: int = 0

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        images, count = tokens.x.shape[:2]
        seed = self.seed + 1000003 * (tokens.layer + 1)
        return random_prune(images, count, budget, seed=seed, mask=tokens.mask, device=tokens.x.device)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts a dozen integer operations a token."""
        return Cost(12 * num_tokens, 8 * num_tokens)
