"""LLaVA-PruMerge: at a tower's output, keeps outliers of class attention, and adds their neighbours to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.join import join
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.parts.choices.best import among_best


@explains
def prumerge(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    ratio: float | None = None,
    neighbours: int = 32,
    *,
    plus: bool = False,
    mask: Tensor | None = None,
    order: str = "index",
    official: bool = False,
) -> SoftAssignment:
    r"""Keeps the most attended tokens, each with its nearest others weighted by attention, and one token of the rest.

    With a the class token's row of one softmax over full-width queries and keys, a kept token becomes
    :math:`(x_i + \sum_j a_j x_j) / (1 + \sum_j a_j)` over its nearest tokens by cosine of keys, kept ones among them.

    Args:
        x: The tower's output, ``[B, N, C]`` patch tokens.
        q: Queries of its last layer, heads side by side, ``[B, 1+N, C]``, or the class token's alone, ``[B, 1, C]``.
        k: Keys, ``[B, 1+N, C]``, the class token in front.
        ratio: Share of the tokens to keep, at least one; ``None``: those with attention above the third quartile plus
            1.5 times the distance of the quartiles, so that images differ.
        neighbours: Nearest tokens of each kept one.
        plus: Also keeps positions 0, g, 2g, ... with g a third of one over the share, rounded down, at least 1.
        mask: ``[B, N]`` bool, True where there is a token.
        order: Of kept tokens: ``"index"``, or ``"score"`` as in the code.
        official: Sums, not means, as in the code.

    Returns:
        The weighted map over ``B*N`` tokens (the True ones of ``mask``): kept tokens, and last that of the rest, which
        ``lift`` gives its tokens; none where all stay.

    Raises:
        ValueError: If shapes do not fit, or ``ratio`` is out of (0, 1].

    Cost: ``O(B N m C)`` for m kept tokens, and a pass over the images on the host.

    Source: Shang et al., *LLaVA-PruMerge*, 2024, and its code, with ``official``; each image has a share of its own (in
    the code one for the batch); means are our own.
    """
    check_tokens(x)
    check_mask(mask, x)
    if k.shape[:2] != (x.size(0), x.size(1) + 1) or q.dim() != 3 or q.size(2) != k.size(2):
        raise ValueError(
            f"Expected keys [B, 1+N, D] of [B, N] = {list(x.shape[:2])} tokens and queries of their width (got "
            f"{list(k.shape)}, {list(q.shape)})."
        )
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"Expected ratio in (0, 1] (got {ratio}).")
    with torch.autocast(x.device.type, enabled=False):
        logits = torch.matmul(k.float(), q[:, :1].float().transpose(1, 2))[..., 0] * k.size(2) ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~F.pad(mask, (1, 0), value=True), -torch.inf)
        score = logits.softmax(dim=1)[:, 1:]
        parts = []
        for b in range(x.size(0)):
            there = slice(None) if mask is None else mask[b]
            a, keys = score[b, there], F.normalize(k[b, 1:][there].float(), dim=1)
            parts.append(_one(a, keys, ratio, neighbours, plus, order, official))
    if not parts:
        raise ValueError("Expected at least one image (got none).")
    joined = join(parts, None)
    assert isinstance(joined, SoftAssignment)
    return joined


def adaptive_count(score: Tensor) -> int:
    """Tokens whose score ``[N]`` is above the third quartile plus 1.5 times the distance of the quartiles."""
    if not score.numel():
        return 0
    low, high = score.quantile(0.25), score.quantile(0.75)
    return int((score > high + 1.5 * (high - low)).sum())


def _one(
    a: Tensor, keys: Tensor, ratio: float | None, neighbours: int, plus: bool, order: str, official: bool
) -> SoftAssignment:
    """The map of one image, by its attention ``a [N]`` and unit keys ``[N, D]``."""
    count = a.numel()
    wanted = max(adaptive_count(a) if ratio is None else int(count * ratio), 1)
    kept = among_best(a[None], min(wanted, count), None)[0]
    if plus:
        step = max(int(int(count / wanted) / 3), 1)
        kept = kept | (torch.arange(count, device=a.device) % step == 0)
    return take_neighbours(a, keys, kept, neighbours, order, official)


def take_neighbours(
    a: Tensor, keys: Tensor, kept: Tensor, neighbours: int, order: str = "index", official: bool = False
) -> SoftAssignment:
    """Maps the tokens of one image to the kept ones with their neighbours, and to one token of the rest.

    Args:
        a: Attention of each token, ``[N]``: the weight of a neighbour, and of the rest.
        keys: Unit keys, ``[N, D]``; the nearest have the highest cosine, ties to the lower index.
        kept: ``[N]`` bool.
        neighbours: Nearest tokens of each kept one.
        order: Of kept tokens: ``"index"``, or ``"score"``.
        official: Sums, not means.

    Returns:
        The map; the rest is the last cluster and stands at its most attended token. No cluster of it if all are kept.

    Cost: ``O(m N D)`` for m kept tokens and a sort of ``[m, N]``; a host synchronisation on CUDA.
    """
    count, device = a.numel(), a.device
    chosen = kept.nonzero()[:, 0]
    if order == "score":
        chosen = chosen[a[chosen].argsort(descending=True, stable=True)]
    m, own = chosen.numel(), torch.arange(chosen.numel(), device=device)
    if m == count:
        return SoftAssignment(chosen, own, torch.ones(m, device=device), count, m, True, lossless=True, centers=chosen)
    edges = keys[chosen] @ keys.t()
    edges[own, chosen] = -torch.inf
    near = edges.argsort(dim=1, descending=True, stable=True)[:, : min(neighbours, count - 1)]
    rest = (~kept).nonzero()[:, 0]
    last = a[rest] if official else a[rest] / a[rest].sum().clamp_min(1e-12)
    token = torch.cat([chosen, near.flatten(), rest])
    cluster = torch.cat([own, own.repeat_interleave(near.size(1)), torch.full_like(rest, m)])
    weight = torch.cat([torch.ones(m, device=device), a[near.flatten()], last])
    up = (torch.cat([chosen, rest]), torch.cat([own, torch.full_like(rest, m)]), torch.ones(count, device=device))
    centers = torch.cat([chosen, rest[a[rest].argmax()][None]])
    return SoftAssignment(token, cluster, weight, count, m + 1, not official, up, centers=centers)
