"""A-ViT's ponder cost, and its prior on the depth at which tokens halt."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.kinds import explain_kinds


class Pondered(NamedTuple):
    """What tokens spent: of a run of :class:`tokengraph.AViT`.

    Args:
        rho: Blocks that each token ran, and the rest of 1 at its end: ``[B, P+N]``.
        halting: Halting scores of each block over the input's tokens, ``[B, L, P+N]``; 0 where a token had left.
        valid: ``[B, P+N]`` bool, True where there is a token; ``None``: everywhere.
        num_prefix: P.
    """

    rho: Tensor
    halting: Tensor
    valid: Tensor | None = None
    num_prefix: int = 1


@explain_kinds
class PonderLoss(nn.Module):
    r"""Ponder cost and halting prior, :math:`w_p \overline{\rho} + w_d \operatorname{KL}(p \,\Vert\, \overline{h})`.

    :math:`\overline{h}` are the mean halting scores of the blocks, divided by their sum and held in [0.01, 0.99]; p is
    a normal density over blocks around ``center``.

    Args:
        ponder: :math:`w_p`, published: 5e-4.
        prior: :math:`w_d`, published: 1e-3.
        center: Of the prior, in blocks; published: 8.
        deviation: Of the prior.
        official: Means for the prior leave the first image out, not prefix tokens, as in the code (NaN for one image).

    Source: Yin et al., *A-ViT*, CVPR 2022, and its code. Differs: the prior's mean is over patches and images.
    """

    def __init__(
        self,
        ponder: float = 5e-4,
        prior: float = 1e-3,
        *,
        center: float = 8.0,
        deviation: float = 1.0,
        official: bool = False,
    ) -> None:
        super().__init__()
        if not deviation > 0:
            raise ValueError(f"Expected deviation > 0 (got {deviation}).")
        self.ponder, self.prior, self.official = ponder, prior, official
        self.center, self.deviation = center, deviation

    def target(self, depth: int, like: Tensor) -> Tensor:
        """The prior over the blocks, ``[L]``, scaled so that its first ``center`` entries sum to 0.98."""
        place = torch.arange(depth, device=like.device, dtype=like.dtype)
        density = (-0.5 * ((place - self.center) / self.deviation).square()).exp()
        density = density / (self.deviation * math.sqrt(2 * math.pi))
        first = density[: max(int(self.center), 1)].sum().clamp_min(1e-12)
        return density * 0.98 / first

    def forward(self, spent: Pondered) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum, and a dict of both terms, detached.

        Args:
            spent: ``handle.select.pondered(handle.trace.seen)``.
        """
        there = torch.ones_like(spent.rho) if spent.valid is None else spent.valid.to(spent.rho.dtype)
        rho = (spent.rho * there).sum() / there.sum().clamp_min(1)
        if self.official:
            mean = spent.halting[1:].mean(dim=(0, 2))
        else:
            patches = there[:, None, spent.num_prefix :]
            mean = (spent.halting[..., spent.num_prefix :] * patches).sum(dim=(0, 2)) / patches.sum().clamp_min(1)
        mean = (mean / mean.sum().clamp_min(1e-12)).clamp(0.01, 0.99)
        goal = self.target(mean.numel(), mean)
        prior = F.kl_div(mean.log(), goal, reduction="batchmean")
        total = self.ponder * rho + self.prior * prior
        return total, {"ponder": rho.detach(), "prior": prior.detach()}
