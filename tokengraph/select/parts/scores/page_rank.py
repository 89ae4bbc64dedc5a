"""Importance of tokens in the graph of attention: a walk from token to token, by the attention that each pays."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import TINY


def page_rank(
    attention: Tensor,
    rounds: int,
    class_weight: float | str = "sqrt",
    num_prefix: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Walks along attention: :math:`s \leftarrow A^T s`, so a token matters if tokens that matter attend to it.

    Args:
        attention: ``[B, H, P+N, P+N]``, rows are queries.
        rounds: Steps of the walk.
        class_weight: How much the first token counts at the start, the others 1; ``"sqrt"``: sqrt(P + N). Without
            prefix tokens all are equal.
        num_prefix: P.
        mask: ``[B, N]`` bool: patch tokens that take part; rows are normalised over these and the prefix.

    Returns:
        ``[B, H, P+N]``; sums to 1 over the tokens of a head.

    Raises:
        ValueError: If ``rounds`` is below 0.

    Cost: ``O(rounds B H N^2)``.

    Example:
        >>> cycle = torch.eye(3).roll(1, dims=1)[None, None]  # 0 attends 1, 1 attends 2, 2 attends 0
        >>> [round(s, 4) for s in page_rank(cycle, 1, 2.0)[0, 0].tolist()]
        [0.25, 0.5, 0.25]

    Source: Wang et al., *Zero-TPrune*, CVPR 2024, by a note on it; the normalisation is our own.
    """
    if rounds < 0:
        raise ValueError(f"Expected rounds >= 0 (got {rounds}).")
    images, heads, tokens, _ = attention.shape
    a, start = attention, attention.new_ones(images, 1, tokens)
    if mask is not None:
        there = torch.cat([mask.new_ones(images, num_prefix), mask], dim=1).to(a.dtype)
        a = a * there[:, None, None] * there[:, None, :, None]
        a = a / a.sum(dim=3, keepdim=True).clamp_min(TINY)
        start, tokens = there[:, None], there.sum(dim=1)[:, None, None]  # type: ignore[assignment]
    if num_prefix:
        root = torch.as_tensor(tokens, dtype=a.dtype, device=a.device) ** 0.5
        first = root if class_weight == "sqrt" else torch.as_tensor(class_weight, dtype=a.dtype, device=a.device)
        start = torch.cat([start[..., :1] * first, start[..., 1:]], dim=2)
    s = (start / start.sum(dim=2, keepdim=True)).expand(-1, heads, -1)
    for _ in range(rounds):
        s = torch.matmul(s[:, :, None], a)[:, :, 0]
    return s


def rank_importance(rank: Tensor, num_prefix: int, variance: tuple[float, float], mask: Tensor | None = None) -> Tensor:
    r"""Importance of patch tokens from the walks of all heads, :math:`(\sum_h s_h^2 \eta_h / \sum_h \eta_h)^{1/2}`.

    Args:
        rank: ``[B, H, P+N]``, of :func:`page_rank`.
        num_prefix: P.
        variance: A head counts if the variance of :math:`n s_h` over the patches lies within; if none, all do.
        mask: ``[B, N]`` bool: patch tokens that take part; others get 0.

    Returns:
        ``[B, N]``.
    """
    return combine_heads(rank, num_prefix, head_variance(rank, num_prefix, mask), variance, mask)


def head_variance(rank: Tensor, num_prefix: int, mask: Tensor | None = None) -> Tensor:
    """The population variance of ``n * rank`` over the n patches, ``[B, H]``."""
    s = rank[..., num_prefix:]
    there = torch.ones_like(s[:, :1]) if mask is None else mask[:, None].to(s.dtype)
    count = there.sum(dim=2, keepdim=True).clamp_min(1)
    s = s * count
    mean = (s * there).sum(dim=2, keepdim=True) / count
    return (((s - mean).square() * there).sum(dim=2, keepdim=True) / count)[..., 0]


def combine_heads(
    rank: Tensor, num_prefix: int, spread: Tensor, variance: tuple[float, float], mask: Tensor | None
) -> Tensor:
    """The root of the mean square over heads whose ``spread [B, H]`` lies within ``variance``."""
    counts = ((spread >= variance[0]) & (spread <= variance[1])).to(rank.dtype)
    counts = torch.where(counts.any(dim=1, keepdim=True), counts, 1.0)[..., None]
    s = rank[..., num_prefix:]
    out = ((s.square() * counts).sum(dim=1) / counts.sum(dim=1)).sqrt()
    return out if mask is None else out * mask
