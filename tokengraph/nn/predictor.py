"""DynamicViT's prediction module: predicts the probability that each token is kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.errors import check_tokens
from tokengraph.flat.segment import as_type, segment_sum, wide
from tokengraph.kinds import explain_kinds

POOLINGS = ("masked", "mean")


@explain_kinds
class TokenPredictor(nn.Module):
    r"""Scores tokens by their own features and by one summary of their image.

    .. math:: h = \mathrm{GELU}(W_1 \mathrm{LN}(x)), \quad
              g = \sum_i d_i h_i^{(2)} / \max(1, \sum_i d_i), \quad
              \log p_i = \mathrm{LogSoftmax}(\mathrm{MLP}([h_i^{(1)}, g]))

    Here :math:`h^{(1)}, h^{(2)}` are the halves of the channels, and d is the keep mask. Channel 0 means keep. The
    state dict has the published names: ``in_conv.{0,1}`` and ``out_conv.{0,2,4}``.

    Args:
        channels: C, a multiple of 4.
        eps: The eps of the LayerNorm.
        pooling: ``"masked"``: the summary is the mean over kept tokens; ``"mean"``: the mean over all tokens, without
            the mask.
        generator: Draws the initial weights; ``None``: torch's global generator. Linear weights come from a normal
            distribution of deviation 0.02 truncated at 2; biases are 0.

    Raises:
        TypeError: If ``channels`` is no int.
        ValueError: If ``channels`` is no multiple of 4 or ``pooling`` is unknown.

    Cost: ``1.375 C^2`` multiply-adds a token; no host synchronisation.

    Source: Rao et al., *DynamicViT*, NeurIPS 2021, and its code. Differs: the denominator is at least 1
    (published: NaN where no token is kept); keep is channel 0, as in the code (paper: 1).
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        pooling: str = "masked",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int):
            raise TypeError(f"Expected channels to be an int (got {channels!r}).")
        if channels < 4 or channels % 4:
            raise ValueError(f"Expected channels to be a positive multiple of 4 (got channels={channels}).")
        if pooling not in POOLINGS:
            raise ValueError(f"Expected pooling to be one of {', '.join(POOLINGS)} (got {pooling!r}).")
        self.channels = channels
        self.pooling = pooling
        self.in_conv = nn.Sequential(nn.LayerNorm(channels, eps=eps), nn.Linear(channels, channels), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.GELU(),
            nn.Linear(channels // 2, channels // 4),
            nn.GELU(),
            nn.Linear(channels // 4, 2),
        )
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, x: Tensor, keep: Tensor | None = None, ptr: Tensor | None = None) -> Tensor:
        """Returns log-probabilities ``[..., 2]`` in float32 or wider, channel 0 for keep.

        Args:
            x: Patch tokens, ``[B, N, C]``; or ``[M, C]`` flat, with ``ptr``.
            keep: The mask of earlier stages, ``[B, N]`` or ``[M]``; ``None``: all tokens are kept.
            ptr: First token of each image, ``[B+1]``; a flat ``x`` without it is one image.

        Raises:
            ValueError: If shapes do not fit.
        """
        check_tokens(x, dims=(2, 3))
        if x.size(-1) != self.channels:
            raise ValueError(f"Expected x with C={self.channels} channels (got {x.size(-1)}).")
        if keep is not None and keep.shape != x.shape[:-1]:
            raise ValueError(f"Expected keep of shape {list(x.shape[:-1])} (got {list(keep.shape)}).")
        if ptr is not None and x.dim() == 3:
            raise ValueError("Expected ptr with a flat x [M, C] only (got one with [B, N, C]).")
        local, pooled = self.in_conv(x).chunk(2, dim=-1)
        keep = None if self.pooling == "mean" else keep
        # The first linear layer on [local, global]: the global half is equal for all tokens of an image, so it is
        # computed once.
        first: nn.Linear = self.out_conv[0]  # type: ignore[assignment]
        of_local, of_global = first.weight.chunk(2, dim=1)
        hidden = F.linear(local, of_local)
        if ptr is None:
            summary = as_type(_mean(pooled, keep), pooled.dtype)
            hidden = hidden + F.linear(summary, of_global, first.bias)
        else:
            image = torch.repeat_interleave(ptr.diff(), output_size=x.size(0))
            summary = _segment_mean(pooled, keep, image, ptr).to(pooled.dtype)
            hidden = hidden + F.linear(summary, of_global, first.bias).index_select(0, image)
        logits = self.out_conv[1:](hidden)
        return as_type(logits, wide(logits)).log_softmax(dim=-1)


def _mean(h: Tensor, keep: Tensor | None) -> Tensor:
    """Averages the kept tokens of ``h [..., N, C]`` to ``[..., 1, C]``, by a product without a weighted copy."""
    h = as_type(h, wide(h))
    if keep is None:
        with torch.autocast(h.device.type, enabled=False):
            return h.mean(dim=-2, keepdim=True)
    weight = as_type(keep, h.dtype)
    with torch.autocast(h.device.type, enabled=False):
        total = torch.matmul(weight.unsqueeze(-2), h)
    return total / weight.sum(dim=-1).clamp_min(1.0)[..., None, None]


def _segment_mean(h: Tensor, keep: Tensor | None, image: Tensor, ptr: Tensor) -> Tensor:
    """Averages the kept tokens of each image of flat ``h [M, C]`` to ``[B, C]``."""
    images = ptr.numel() - 1
    h = h.to(wide(h))
    weight = h.new_ones(h.size(0)) if keep is None else keep.to(h.dtype)
    count = segment_sum(weight, image, images).clamp_min(1.0)
    return segment_sum(h * weight[:, None], image, images) / count[:, None]
