"""ToMe in windows: within a block, the MLP runs on merged tokens, and every token takes its cluster's update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.windows.grid import Pair, real, split, stitch


def merged_update(
    mlp: Callable[[Tensor], Tensor], x: Tensor, keys: Tensor, select: Select, window: Pair, keep: int
) -> Tensor:
    """Runs an MLP on the clusters of each window, and gives every token its cluster's output.

    Windows are cut from the unshifted map, also if the attention shifts it, so that no cluster joins opposite borders.
    Padding has weight zero in clusters; its keys are all equal, so that it merges first.

    Args:
        mlp: Maps rows ``[1, K, C]`` to rows.
        x: The map, ``[B, H, W, C]``.
        keys: Features by which tokens are matched, ``[B, H, W, D]``.
        select: A strategy that makes hard maps with equal counts.
        window: ``(a, b)``.
        keep: Clusters of each window.

    Returns:
        ``[B, H, W, C]``.

    Cost: the strategy's for each window, one reduction and one copy back.
    """
    windows, cut = split(x, window)
    metric = split(keys, window, value=1.0)[0]
    stats = AttentionStats(None, 1.0, 0, keys=lambda: metric[:, None])
    assignment = select(Tokens(windows, grid=window, attention=stats), keep)
    inside = real(cut, x.device)
    size = None if inside is None else inside.flatten().to(torch.float32)
    rows, _ = assignment.reduce(windows.flatten(0, 1), size)
    update = assignment.lift(mlp(rows[None])[0])
    return stitch(update.view(windows.size(0), windows.size(1), -1), cut)


def mean_keys(qkv: Tensor, heads: int, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Keys averaged over heads, ``[W, N, D]`` in float32 or wider, from the output of a joint projection.

    Args:
        qkv: ``[W, N, 3*H*D]``.
        heads: H.
        norm: The block's norm of keys; ``None``: it has none.
    """
    windows, tokens, _ = qkv.shape
    keys = qkv.detach().view(windows, tokens, 3, heads, -1)[:, :, 1]
    keys = keys if norm is None else norm(keys).detach()
    return keys.mean(dim=2, dtype=torch.promote_types(keys.dtype, torch.float32))
