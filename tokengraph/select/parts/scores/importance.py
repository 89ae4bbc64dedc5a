"""Importance of tokens by the class token's attention and the length of their values."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import TINY, as_type
from tokengraph.select.tokens import Tokens


def ppt_score(class_row: Tensor, value_norms: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Scores tokens by how much the class token takes from them; the scores of an image sum to one.

    .. math:: \sigma_j \propto \nu_j \textstyle\sum_h A_{h, \text{cls}, j}

    Args:
        class_row: The class token's attention to patch tokens, ``[B, H, N]``.
        value_norms: How long their values are, all heads together, ``[B, N]``.
        mask: ``[B, N]`` bool, True where there is a token; padding gets 0.

    Returns:
        ``[B, N]`` float32 or wider, without gradient. An image whose products are all 0 gets equal scores.

    Example:
        >>> row = torch.tensor([[[0.2, 0.3, 0.1]]])
        >>> [round(s, 4) for s in ppt_score(row, torch.tensor([[1.0, 2.0, 5.0]]))[0].tolist()]
        [0.1538, 0.4615, 0.3846]

    Source: Fayyaz et al., *Adaptive Token Sampling*, ECCV 2022; Wu et al., *PPT*, 2023, and their codes.
    """
    wide = torch.promote_types(class_row.dtype, torch.float32)
    product = as_type(class_row.detach(), wide).sum(dim=1) * as_type(value_norms.detach(), wide)
    there = torch.ones_like(product) if mask is None else mask.to(wide)
    product = product * there if mask is None else torch.where(mask, product, 0.0)
    product = product / product.amax(dim=1, keepdim=True).clamp_min(TINY)  # sums of huge values overflow
    total = product.sum(dim=1, keepdim=True)
    even = there / there.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(total > 0, product / total.clamp_min(TINY), even)


def importance(tokens: Tokens) -> Tensor:
    """:func:`ppt_score` of a block's tokens, ``[B, N]``.

    Raises:
        ValueError: Outside a model, or in a model without a class token.
    """
    row = tokens.class_row()
    assert tokens.attention is not None
    return ppt_score(row, tokens.attention.value_norms()[:, tokens.num_prefix :], tokens.mask)
