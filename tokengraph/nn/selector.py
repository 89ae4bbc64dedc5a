"""SPViT's selector: a prediction module for each head, weighted by squeeze and excitation, and its package token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokengraph.flat.segment import wide
from tokengraph.nn.predictor import TokenPredictor


class MultiheadSelector(nn.Module):
    r"""Scores tokens by the mean over heads of :math:`w_h \log p_h`, with :math:`p_h` of each head's channels.

    Args:
        channels: C.
        heads: H; C / H is a multiple of 4.
        shared: All heads share one predictor, as in the code, where that is an oversight; state dict ``heads.0``.

    Raises:
        ValueError: If channels and heads do not fit.

    Cost: ``1.375 C^2 / H`` multiply-adds a token.

    Source: Kong et al., *SPViT*, ECCV 2022, and its code: the selector.
    """

    def __init__(self, channels: int, heads: int, *, shared: bool = False) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"Expected heads that divide the channels (got {heads} of {channels}).")
        self.count = heads
        self.heads = nn.ModuleList(TokenPredictor(channels // heads) for _ in range(1 if shared else heads))
        hidden = max(heads // 2, 1)
        self.senet = nn.Sequential(nn.Linear(heads, hidden), nn.GELU(), nn.Linear(hidden, heads), nn.Sigmoid())

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Returns ``[B, N, 2]``, channel 0 for keep; the mean of log-probabilities is not itself normalised.

        Args:
            x: ``[B, N, C]``.
            keep: Tokens that are still there, ``[B, N]``.
        """
        each, weight = self._heads(x, keep)
        return (each * weight).sum(dim=2)

    def probability(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """The mean over heads of their probabilities, ``[B, N, 2]``, by which a package is weighted."""
        each, weight = self._heads(x, keep)
        return (each.exp() * weight).sum(dim=2)

    def _heads(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities of each head ``[B, N, H, 2]``, and the heads' weights ``[B, N, H, 1]``."""
        parts = x.unflatten(2, (self.count, -1))
        weight = self.senet(parts.mean(dim=3))
        weight = weight.to(wide(weight))
        each = [self.heads[h % len(self.heads)](parts[:, :, h], keep) for h in range(self.count)]
        return torch.stack(each, dim=2), (weight / weight.sum(dim=2, keepdim=True))[..., None]


def package(x: Tensor, probability: Tensor, dropped: Tensor, *, official: bool = False) -> Tensor:
    r"""Makes one token of those that drop now, weighted by how probable keeping them was.

    Args:
        x: ``[B, N, C]``.
        probability: Of keeping, ``[B, N]``; gets a gradient.
        dropped: 1 at tokens that drop now, ``[B, N]``.
        official: The sum, as in the code; by default divided by the sum of the weights.

    Returns:
        ``[B, C]``; zeros where none drops.

    Source: Kong et al., *SPViT*, ECCV 2022, and its code; the mean is our own.
    """
    weight = probability * dropped.to(probability.dtype)
    total = torch.matmul(weight[:, None], x.to(weight.dtype))[:, 0]
    return (total if official else total / weight.sum(dim=1, keepdim=True).clamp_min(1e-12)).to(x.dtype)
