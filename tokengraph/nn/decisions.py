"""Differentiable keep decisions: draws which tokens are kept, with a gradient (Gumbel-Softmax, straight-through)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.flat.segment import wide
from tokengraph.kinds import explains


@explains
def gumbel_keep(
    logp: Tensor,
    previous: Tensor | None = None,
    *,
    ptr: Tensor | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    tau: float = 1.0,
    at_least_one: bool = False,
) -> Tensor:
    r"""Draws a keep mask from log-probabilities; a token that was dropped stays dropped.

    .. math:: y = \operatorname{softmax}((\log p + g) / \tau)_0, \quad
              d = d_{\text{previous}} \cdot (\mathbb{1}[y \ge 1/2] + y - \operatorname{stop}(y))

    with Gumbel noise g. Forward values are exactly 0 or 1; the gradient is that of the soft sample y.

    Args:
        logp: Log-probabilities, ``[..., N, 2]``, channel 0 for keep; ``[M, 2]`` flat.
        previous: The mask of earlier stages, ``[..., N]``; ``None``: all tokens are kept so far. It gets a gradient.
        ptr: First token of each image, ``[B+1]``, for a flat batch; only ``at_least_one`` reads it.
        generator: Draws the noise; ``None``: torch's global generator.
        noise: The Gumbel noise, ``[..., N, 2]``, instead of a draw.
        tau: Temperature of the soft sample.
        at_least_one: In an image that would lose all tokens, keep the one with the best score.

    Returns:
        ``[..., N]`` in float32 or wider.

    Raises:
        ValueError: If shapes do not fit or ``tau <= 0``.

    Cost: a few passes over ``[..., N]``; no host synchronisation.

    Example:
        >>> gumbel_keep(torch.tensor([[-0.1, -2.4], [-2.4, -0.1]]), noise=torch.zeros(2, 2)).tolist()
        [1.0, 0.0]

    Source: Rao et al., *DynamicViT*, NeurIPS 2021. Differs: kept tokens are exactly 1 (published: up to
    rounding); ``at_least_one``.
    """
    if logp.dim() < 2 or logp.size(-1) != 2:
        raise ValueError(f"Expected logp of shape [..., N, 2] (got {list(logp.shape)}).")
    if previous is not None and previous.shape != logp.shape[:-1]:
        raise ValueError(f"Expected previous of shape {list(logp.shape[:-1])} (got {list(previous.shape)}).")
    if noise is not None and noise.shape != logp.shape:
        raise ValueError(f"Expected noise of shape {list(logp.shape)} (got {list(noise.shape)}).")
    if not tau > 0:
        raise ValueError(f"Expected tau > 0 (got tau={tau}).")
    if ptr is not None and logp.dim() != 2:
        raise ValueError(f"Expected ptr with flat logp [M, 2] only (got one with {list(logp.shape)}).")
    logp = logp.to(wide(logp))
    if noise is None:
        noise = torch.empty_like(logp, requires_grad=False).exponential_(generator=generator).log().neg()
    noisy = logp + noise
    # The softmax of two channels is the sigmoid of their difference.
    soft = torch.sigmoid((noisy[..., 0] - noisy[..., 1]) / tau)
    hard = noisy[..., 0] >= noisy[..., 1]
    if at_least_one:
        hard = hard | _last_ones(logp.detach()[..., 0], hard, previous, ptr)
    # In this order soft cancels exactly.
    keep = hard.to(soft.dtype) + (soft - soft.detach())
    return keep if previous is None else keep * previous


def _last_ones(score: Tensor, hard: Tensor, previous: Tensor | None, ptr: Tensor | None) -> Tensor:
    """Marks the best remaining token of each image that would keep none, bool of the shape of ``score``."""
    left = torch.ones_like(hard) if previous is None else previous.detach() > 0
    flat, order = score.flatten(), torch.arange(score.numel(), device=score.device)
    if ptr is None:
        images, image = score.numel() // max(score.size(-1), 1), order // max(score.size(-1), 1)
    else:
        images, image = ptr.numel() - 1, torch.repeat_interleave(ptr.diff(), output_size=score.numel())

    def extreme(values: Tensor, start: float, how: str) -> Tensor:
        return values.new_full((images,), start).scatter_reduce(0, image, values, how)[image]

    alone = extreme((hard & left).flatten().float(), 0.0, "amax") == 0
    candidate = alone & left.flatten()
    best = torch.where(candidate, flat, -torch.inf)
    candidate = candidate & (flat == extreme(best, -torch.inf, "amax"))
    # Ties go to the lowest index.
    first = extreme(torch.where(candidate, order, flat.numel()), flat.numel(), "amin")
    return (candidate & (order == first)).view_as(hard)
