"""Random pruning: the control that every score has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_mask
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.select.topk import _topk


def random_score(num_tokens: int, seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Pseudo-random numbers in [0, 1), ``[N]`` float32: a hash of (seed, index).

    The same on every device, for any batch and any N, under compilation and export; no generator is touched.
    """
    n = torch.arange(num_tokens, device=device, dtype=torch.int64)
    # Lowbias32 (Wellons), in 64 bits cut to 32 after each product.
    h = (n * 0x9E3779B1 + (seed * 0x85EBCA77 + 0x27D4EB2F) % 2**32) % 2**32
    h = ((h ^ (h >> 16)) * 0x7FEB352D) % 2**32
    h = ((h ^ (h >> 15)) * 0x46C7EB45) % 2**32
    return ((h ^ (h >> 16)) >> 8).float() / 2**24


def random_prune(
    num_images: int,
    num_tokens: int,
    keep: int | list[int],
    *,
    seed: int = 0,
    mask: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Assignment:
    """Keeps ``keep`` random tokens an image, in order; the same places in every image.

    Arguments as :func:`tokengraph.topk`.
    """
    score = random_score(num_tokens, seed, device=device).expand(num_images, -1)
    check_mask(mask, score)
    return _topk(score, keep, mask)


@dataclass(frozen=True)
class Random(Select):
    """Random pruning as a strategy, between attention and MLP.

    Args:
        seed: Same seed, same tokens; each layer draws anew.
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
        """A dozen integer operations a token."""
        return Cost(12 * num_tokens, 8 * num_tokens)
