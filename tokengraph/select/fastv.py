"""FastV: keeps the image tokens that one query of a language model attends to most."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import as_type
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.topk import topk


@explains
def fastv(
    attention: Tensor, keep: int | list[int], query: int | None = -1, *, mask: Tensor | None = None
) -> Assignment:
    """Keeps the tokens with the most attention from one query, mean over heads, each image by its own map.

    Args:
        attention: Attention of queries to image tokens, ``[B, H, Q, N]``: a language model's map with the columns of
            the image, or a tower's.
        keep: Tokens an image.
        query: The row; published: the last one, of the second or third decoder layer. ``None``: the mean of all rows,
            for a tower without a class token.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``); kept tokens stay in order.

    Raises:
        ValueError: If ``attention`` has another shape, or no such row.

    Cost: one row of the map and a sort.

    Source: Chen et al., *An Image is Worth 1/2 Tokens After Layer 2* (FastV), ECCV 2024; its code was read, not run,
    and takes the first image's choice for all of a batch. The mean of rows is our own.
    """
    if attention.dim() != 4:
        raise ValueError(f"Expected attention of shape [B, H, Q, N] (got {list(attention.shape)}).")
    rows = attention.size(2)
    if query is not None and not -rows <= query < rows:
        raise ValueError(f"Expected query to be one of {rows} rows of attention (got {query}).")
    row = attention.mean(dim=2) if query is None else attention[:, :, query]
    return topk(as_type(row, torch.float32).mean(dim=1), keep, mask=mask)
