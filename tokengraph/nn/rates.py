"""Learned rates: how many tokens each block keeps, as distributions over counts with gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokengraph.kinds import explain_kinds


class Rate(nn.Module):
    r"""One rate: a distribution :math:`\pi` over candidate counts of patches, of which the mean, rounded up, is kept.

    Args:
        candidates: Counts, falling, ``[K]``; one alone is fixed and learns nothing.

    Source: Chen et al., *DiffRate*, ICCV 2023, and its code.
    """

    candidates: Tensor

    def __init__(self, candidates: Tensor) -> None:
        super().__init__()
        self.register_buffer("candidates", candidates.float(), persistent=False)
        self.logits = nn.Parameter(torch.zeros(candidates.numel()), requires_grad=candidates.numel() > 1)

    def count(self) -> Tensor:
        """Tokens kept, the class token counted: whole, with the gradient of the mean; 0-dim."""
        mean = (self.candidates * self.logits.float().softmax(dim=0)).sum()
        whole = (mean.detach() - 1e-5).ceil() + 1  # 60.000004 is 60 up to rounding
        return whole + (mean - mean.detach())  # in this order whole, to the bit

    def probability(self, length: int) -> Tensor:
        """How probable it is that the tokens at places 0 (the class token), 1, ... are kept, ``[length]``."""
        share = self.logits.float().softmax(dim=0)
        place = torch.arange(length, device=share.device)
        return torch.where(place[:, None] <= self.candidates, share, 0.0).sum(dim=1)

    def mask(self, rank: Tensor, count: Tensor, present: Tensor) -> Tensor:
        """Which tokens this rate keeps, 0 or 1 with the gradient of their probability.

        Args:
            rank: Place of each patch token, from 1, the best, on; ``[B, N]`` int64.
            count: Tokens to keep, the class token counted: places from it on drop.
            present: Tokens there before, ``[B, 1]`` or 0-dim; places from it on are kept by this mask, because the
                masks before it have dropped them.

        Returns:
            ``[B, N]``.
        """
        soft = self.probability(rank.size(1) + 1)[rank]
        hard = ((rank < count) | (rank >= present)).to(soft.dtype)
        return hard + (soft - soft.detach())


@explain_kinds
class Rates(nn.Module):
    """Two rates for each block: tokens not dropped, and tokens behind merging.

    Args:
        depth: Blocks.
        patches: N, patch tokens at the input.
        granularity: Candidates are N, N - granularity, ... down to 1 or more.
        first: Blocks before this one keep all tokens; published: 1, so that block 0 does.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, depth: int, patches: int, granularity: int = 4, first: int = 1) -> None:
        super().__init__()
        if min(depth, patches, granularity) < 1:
            raise ValueError(
                f"Expected depth, patches and granularity of at least 1 (got {depth}, {patches}, {granularity})."
            )
        if isinstance(first, bool) or not 0 <= first <= depth:
            raise ValueError(f"Expected first in [0, {depth}] (got {first!r}).")
        counts = torch.arange(patches, 0, -granularity)
        each = [counts[:1] if block < first else counts for block in range(depth)]
        self.patches, self.first = patches, first
        self.prune = nn.ModuleList(Rate(c) for c in each)
        self.merge = nn.ModuleList(Rate(c) for c in each)

    def counts(self) -> list[tuple[Tensor, Tensor]]:
        """What each block keeps by both rates, the class token counted; 0-dim tensors with gradients."""
        return [(p.count(), m.count()) for p, m in zip(self.prune, self.merge, strict=True)]  # type: ignore[operator,misc]

    def start_at(self, prune: list[int], merge: list[int], sharpness: float = 8.0) -> None:
        """Sets the logits so that the rates begin near two lists of counts, the class token counted.

        Args:
            prune: Tokens not dropped, one a block.
            merge: Tokens behind merging.
            sharpness: How far the logit of the nearest candidate lies above that of one a quarter of all away.
        """
        width = max(self.patches / 4, 1)
        for rates, wanted in ((self.prune, prune), (self.merge, merge)):
            for rate, count in zip(rates, wanted, strict=True):
                away = (rate.candidates - (count - 1)).abs() / width  # type: ignore[operator]
                rate.logits.data.copy_(-sharpness * away)  # type: ignore[operator,union-attr]

    @torch.no_grad()
    def lists(self) -> tuple[list[int], list[int]]:
        """Both rates of each block as whole numbers, the class token counted. Reads values: on CUDA it waits."""
        prune, merge = zip(*((int(p.round()), int(m.round())) for p, m in self.counts()), strict=True)
        return list(prune), list(merge)

    def left(self) -> list[Tensor]:
        """Tokens behind each block: whole numbers, the class token counted; no gradient."""
        now, out = torch.tensor(float(self.patches + 1), device=self.prune[0].logits.device), []  # type: ignore[arg-type]
        for p, m in self.counts():
            now = torch.minimum(now, torch.minimum(p, m)).detach()
            out.append(now)
        return out


def count_flops(
    counts: list[tuple[Tensor, Tensor]],
    patches: int,
    channels: int,
    classes: int,
    patch: int = 16,
    mlp_ratio: float = 4.0,
) -> Tensor:
    r"""Multiply-adds of a ViT by the counts of its blocks, with gradients to these.

    .. math:: 3 n p^2 C + C K + \sum_i \big(4 n_i C^2 + 2 n_i^2 C + 2 m n_{i+1} C^2\big)

    Behind a block :math:`n_{i+1} = \min(n_i, p_i, m_i)`, whose gradient goes in full to both rates, and not to
    :math:`n_i`.

    Args:
        counts: Both rates of each block, of :meth:`Rates.counts`.
        patches: Patch tokens at the input.
        channels: C.
        classes: K.
        patch: p, the side of a patch in pixels.
        mlp_ratio: m. The code has 4 for all models.

    Returns:
        0-dim.

    Source: the code of Chen et al., *DiffRate*, ICCV 2023.
    """
    n = counts[0][0].new_tensor(float(patches + 1))
    total = n * channels * 3 * patch**2 + channels * classes
    for prune, merge in counts:
        total = total + 4 * n * channels**2 + 2 * n.square() * channels
        least = torch.minimum(n, torch.minimum(prune, merge)).detach()
        n = least + (prune - prune.detach()) + (merge - merge.detach())
        total = total + 2 * mlp_ratio * n * channels**2
    return total
