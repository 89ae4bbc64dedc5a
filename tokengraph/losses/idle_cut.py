"""IdleViT's token cut: pulls the attention of running and idle tokens apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokengraph.flat.segment import wide
from tokengraph.kinds import explain_kinds


@explain_kinds
class IdleCutLoss(nn.Module):
    r"""How much attention crosses between running and idle tokens, in each block with idle tokens.

    With W the softmax of the mean logits of a block over all tokens, and m = 1 at tokens that run (the class token
    does):

    .. math:: \text{inter} = \operatorname{mean}_{i} \big(\textstyle\sum_{j > 0} |m_i - m_j| W_{ij}\big)^2, \qquad
              \text{intra} = \operatorname{mean}_{i} \big(\textstyle\sum_j m_i m_j W_{ij} - m_i\big)^2

    The mask has no gradient: queries and keys learn.

    Args:
        weight: Of the mean over blocks of ``inter + intra``; published: 20.
        official: Only every other block counts, still divided by all, as in the code.

    Example:
        >>> loss = IdleCutLoss(weight=1.0)
        >>> inter, intra = loss.terms(torch.zeros(1, 3, 3), torch.tensor([[1.0, 1.0, 0.0]]))
        >>> round(inter.item() * 9, 4), round(intra.item() * 27, 4)
        (1.0, 2.0)

    Source: Xu et al., *No Token Left Behind*, AJCAI 2023, and its code. Differs: all blocks count.
    """

    def __init__(self, weight: float = 20.0, *, official: bool = False) -> None:
        super().__init__()
        self.weight, self.official = weight, official

    def terms(self, logits: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns inter and intra of one block, 0-dim.

        Args:
            logits: Scaled, mean over heads, ``[B, P+N, P+N]``; or those of heads, ``[B, H, P+N, P+N]``.
            runs: 1 at tokens that run, ``[B, P+N]``.

        Raises:
            ValueError: If shapes do not fit.
        """
        if runs.shape != (logits.size(0), logits.size(-1)):
            raise ValueError(f"Expected runs [B, P+N] for logits {list(logits.shape)} (got {list(runs.shape)}).")
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(wide(logits))
            logits = logits.mean(dim=1) if logits.dim() == 4 else logits
            share, m = logits.softmax(dim=-1), runs.detach().to(logits.dtype)
            across = (m[:, :, None] - m[:, None]).abs()
            inter = (across[..., 1:] * share[..., 1:]).sum(dim=2).square().mean()
            intra = ((m[:, :, None] * m[:, None] * share).sum(dim=2) - m).square().mean()
            return inter, intra

    def forward(self, seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Returns the weighted mean over blocks, 0-dim.

        Args:
            seen: ``handle.trace.seen`` of a model with ``IdleViT(cut=True)``: logits and ``runs`` of each block.

        Raises:
            ValueError: If there are none.
        """
        if not seen:
            raise ValueError("Expected logits of blocks with idle tokens (got none). Attach IdleViT(cut=True) and run.")
        counted = seen[::2] if self.official else seen
        total = torch.stack([sum(self.terms(*each)) for each in counted]).sum()  # type: ignore[arg-type]
        return self.weight * total / len(seen)
