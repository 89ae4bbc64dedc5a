"""Marks the tokens that samples of a score hit."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled(score: Tensor, samples: list[int]) -> Tensor:
    """Marks the tokens that inverse transform sampling at the midpoints of K equal steps hits.

    Args:
        score: ``[B, N]`` in float32 or wider, 0 at padding.
        samples: K of each image.

    Returns:
        ``[B, N]`` bool.
    """
    if score.numel() == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    most = max(samples)
    count = torch.tensor(samples, device=score.device)[:, None]
    k = torch.arange(most, device=score.device)
    sums = score.double().cumsum(dim=1)
    wanted = (2 * k + 1) / (2 * count).double() * sums[:, -1:]
    hit = torch.searchsorted(sums, wanted - 1e-6 * sums[:, -1:]).clamp_max(score.size(1) - 1)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, torch.where(k < count, hit, hit[:, :1]), True)


def nearest_sampled(score: Tensor, samples: list[int], counts: list[int], mask: Tensor | None) -> Tensor:
    """Marks the tokens that ATS's code takes: by rising score, those whose running sum is nearest to a sample.

    Args:
        score: ``[B, N]`` in float32 or wider.
        samples: K of each image.
        counts: Tokens of each image.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        ``[B, N]`` bool. All tokens of an image with at most two, or with equal sums.
    """
    kept = torch.zeros_like(score, dtype=torch.bool)
    for b, (many, count) in enumerate(zip(samples, counts, strict=True)):
        place = torch.arange(count, device=score.device) if mask is None else mask[b].nonzero()[:, 0]
        rising = score[b, place].sort(stable=True)
        sums = rising.values.cumsum(dim=0)
        if count <= 2 or not sums[-1] > sums[0]:
            kept[b, place] = True
            continue
        sums = (sums - sums[0]) / (sums[-1] - sums[0])
        first = sums[sums > 0][0]
        wanted = first + (1 - first) * torch.arange(many, device=score.device) / max(many - 1, 1)
        near = (wanted[:, None] - sums).abs().argmin(dim=1)
        kept[b, place[rising.indices[near]]] = True
    return kept
