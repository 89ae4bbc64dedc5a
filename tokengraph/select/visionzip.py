"""VisionZip: at a tower's output, keeps the most attended tokens and averages the rest around evenly spaced ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.each_image import each_image
from tokengraph.select.parts.choices.best import among_best


@explains
def visionzip(
    x: Tensor,
    attention: Tensor,
    keys: Tensor,
    dominant: int,
    contextual: int,
    *,
    mask: Tensor | None = None,
    official: bool = False,
) -> Assignment | SoftAssignment:
    """Keeps the tokens with the most class attention, and merges the others into some of theirs by cosine of keys.

    Of the others every M // contextual-th is a target, and each remaining one joins the most similar target.

    Args:
        x: The tower's output, ``[B, N, C]`` patch tokens.
        attention: Attention that each receives from the class token, heads summed, ``[B, N]``, or ``[B, H, N]``. For a
            tower without a class token the sum over all queries.
        keys: ``[B, N, D]``, mean over heads.
        dominant: Tokens to keep as they are; the published number counts the class token, 54 is 53 here. 0 is allowed.
        contextual: Merged tokens; at most as many as there are others.
        mask: ``[B, N]`` bool, True where there is a token.
        official: A merged token is its target plus the mean of those that joined it, about twice as long, as in the
            code; by default the mean of all.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``): the kept tokens in order, then the merged ones.

    Raises:
        ValueError: If shapes do not fit, or both numbers are 0 or one is negative.

    Cost: a sort, and ``O(B N contextual D)``; no host synchronisation without a mask.

    Example:
        >>> x = torch.randn(1, 576, 8)
        >>> a = visionzip(x, torch.rand(1, 576), x, 53, 10)
        >>> a.num_clusters + 1  # with the class token
        64

    Source: Yang et al., *VisionZip*, CVPR 2025, and its code, with ``official``; the mean is our own.
    """
    check_tokens(x)
    check_tokens(keys, name="keys")
    check_mask(mask, x)
    score = attention.sum(dim=1) if attention.dim() == 3 else attention
    if score.shape != x.shape[:2] or keys.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"Expected attention and keys of {list(x.shape[:2])} tokens (got {list(score.shape)}, "
            f"{list(keys.shape[:2])})."
        )
    if min(dominant, contextual) < 0 or dominant + contextual < 1:
        raise ValueError(f"Expected dominant and contextual of at least 0, together 1 (got {dominant}, {contextual}).")
    check_finite(score if mask is None else score[mask])
    if mask is not None:
        return each_image(lambda s, k: _visionzip(s, k, dominant, contextual, official), (score, keys), mask)
    return _visionzip(score, keys, dominant, contextual, official)


def _visionzip(
    score: Tensor, keys: Tensor, dominant: int, contextual: int, official: bool
) -> Assignment | SoftAssignment:
    images, count = score.shape
    dominant = min(dominant, count)
    if dominant == count:
        return Assignment.from_dense(torch.arange(count, device=score.device).expand(images, -1), count)
    kept = among_best(score, dominant, None)
    rest = (kept.long()).argsort(dim=1, stable=True)[:, : count - dominant]  # the others, in order
    many = count - dominant
    contextual = min(contextual, many)
    number = kept.cumsum(dim=1) - 1
    if contextual == 0:
        centers = (~kept).long().argsort(dim=1, stable=True)[:, :dominant]
        return Assignment.from_dense(torch.where(kept, number, -1), dominant, drops=True, centers=centers, single=True)
    target = torch.arange(contextual, device=score.device) * max(many // contextual, 1)
    with torch.no_grad(), torch.autocast(score.device.type, enabled=False):
        unit = F.normalize(keys.float(), dim=2).gather(1, rest[..., None].expand(-1, -1, keys.size(2)))
        to = torch.matmul(unit, unit[:, target].transpose(1, 2)).argmax(dim=2)
    to[:, target] = torch.arange(contextual, device=score.device)
    number = number.scatter(1, rest, dominant + to)
    centers = torch.cat([(~kept).long().argsort(dim=1, stable=True)[:, :dominant], rest[:, target]], dim=1)
    hard = Assignment.from_dense(number, dominant + contextual, centers=centers)
    if not official:
        return hard
    joined = torch.zeros_like(to, dtype=torch.bool)
    joined[:, target] = True
    others = torch.zeros(images, contextual, device=score.device).scatter_add_(1, to, (~joined).float())
    share = torch.where(joined, 1.0, 1 / others.clamp_min(1).gather(1, to))
    weight = torch.ones_like(score, dtype=torch.float32).scatter(1, rest, share).flatten()
    token = torch.arange(hard.num_tokens, device=score.device)
    return SoftAssignment(
        token, hard.cluster, weight, hard.num_tokens, hard.num_clusters, False,
        (token, hard.cluster, torch.ones_like(weight)), hard.ptr, hard.cluster_ptr, hard.centers,
    )  # fmt: skip
