"""Pseudo-random scores, equal on every device: a hash of seed and index."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.tables import table


def random_score(num_tokens: int, seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Returns pseudo-random numbers in [0, 1), ``[N]`` float32: a hash of (seed, index).

    They come from a cache, so callers must not write into them.
    They are equal on every device, for any batch and any N, under compilation and export; no random generator changes.
    """
    if not torch.compiler.is_compiling():
        return _random_score(num_tokens, seed, str(device))
    return _hash(num_tokens, seed, device)


@table(256)
def _random_score(num_tokens: int, seed: int, device: str) -> Tensor:
    return _hash(num_tokens, seed, device)


def _hash(num_tokens: int, seed: int, device: torch.device | str) -> Tensor:
    n = torch.arange(num_tokens, device=device, dtype=torch.int64)
    # Lowbias32 (Wellons), in 64 bits truncated to 32 after each product.
    h = (n * 0x9E3779B1 + (seed * 0x85EBCA77 + 0x27D4EB2F) % 2**32) % 2**32
    h = ((h ^ (h >> 16)) * 0x7FEB352D) % 2**32
    h = ((h ^ (h >> 15)) * 0x46C7EB45) % 2**32
    return ((h ^ (h >> 16)) >> 8).float() / 2**24
