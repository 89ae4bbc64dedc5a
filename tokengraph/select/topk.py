"""Top-K pruning by a score, and EViT's fused token for what is pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_mask
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens, below, clamp_budget, valid_counts

TINY = torch.finfo(torch.float32).tiny


def topk(score: Tensor, keep: int | list[int], *, mask: Tensor | None = None) -> Assignment:
    """Keeps the tokens with the highest scores, in their order; the others are dropped.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        keep: Tokens an image, at least 1.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A lossy map over ``B*N`` tokens (the True ones of ``mask``), with ``centers`` the kept tokens.

    Cost: one sort of ``[B, N]``; no host synchronisation without a mask.

    Example:
        >>> topk(torch.tensor([[0.1, 0.9, 0.5]]), 2).cluster.tolist()
        [2, 0, 1]

    Source: the pruning of Liang et al., *EViT*, ICLR 2022. Differs: kept tokens stay in order (published: by score).
    """
    _check_score(score)
    check_mask(mask, score)
    check_finite(score if mask is None else score[mask])
    return _topk(score, keep, mask)


def fuse_rest(
    score: Tensor, keep: int | list[int], *, mask: Tensor | None = None, average: bool = False
) -> SoftAssignment:
    """Keeps the ``keep - 1`` highest-scored tokens, and adds up the others, weighted by score, in one last cluster.

    The weights are the scores themselves, not divided by their sum, as in EViT's code; gradients reach them. On the way
    back every token of the rest gets the fused token's row. An image that keeps all its tokens has no fused token.

    Args:
        score: ``[B, N]``.
        keep: Clusters an image, the fused one among them; at least 1.
        mask: ``[B, N]`` bool, True where there is a token.
        average: Divide the weights of the others by their sum. Scores that are no shares of attention need it: lengths
            of features would make a token far longer than any other.

    Cost: one sort of ``[B, N]``; no host synchronisation without a mask.

    Source: Liang et al., *EViT*, ICLR 2022, section 3.2, and its code.
    """
    _check_score(score)
    check_mask(mask, score)
    check_finite(score if mask is None else score[mask])
    return _fuse_rest(score, keep, mask, average)


@dataclass(frozen=True)
class TopK(Select):
    """Top-K pruning as a strategy, between attention and MLP.

    Args:
        score: ``"class"``: attention that the class token pays, mean over heads; ``"norm"``: length of the features.
        fuse: Keep what is pruned as one fused token (EViT); see :func:`fuse_rest`. Class attention weighs it as
            published; by ``"norm"`` it is the average of the pruned tokens, weighted by their lengths.
    """

    name: ClassVar[str] = "topk"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"evit": {"fuse": True}, "top-k": {}}
    merges: ClassVar[bool] = False
    score: str = "class"
    fuse: bool = False

    def __post_init__(self) -> None:
        if self.score not in ("class", "norm"):
            raise ValueError(f"Expected score to be 'class' or 'norm' (got {self.score!r}).")

    @property
    def reads(self) -> str:  # type: ignore[override]
        """``"class"`` or, for ``score="norm"``, ``"nothing"``."""
        return "class" if self.score == "class" else "nothing"

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if self.score == "class":
            score = tokens.class_attention()
        else:
            score = torch.linalg.vector_norm(tokens.x.float(), dim=2)
        if self.fuse:
            return _fuse_rest(score, budget, tokens.mask, average=self.score == "norm")
        return _topk(score, budget, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """One row of the attention map, or one norm a token."""
        return Cost(2 * num_tokens * channels, 4 * num_tokens * channels)


def _check_score(score: Tensor) -> None:
    if not isinstance(score, Tensor) or score.dim() != 2:
        got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
        raise ValueError(f"Expected score of shape [B, N] (got {got}).")


def _kept(score: Tensor, keep: int | list[int], mask: Tensor | None) -> Tensor:
    score = score.detach() if mask is None else score.detach().masked_fill(~mask, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(score.size(1), device=score.device).expand_as(order)
    return below(torch.empty_like(order).scatter_(1, order, place), keep)


def _topk(score: Tensor, keep: int | list[int], mask: Tensor | None, order: str = "index") -> Assignment:
    """The map; by ``order="score"`` the best token comes first, but an image that keeps all stays in order."""
    budget = clamp_budget(keep, score, mask)
    most = max(budget, default=0) if isinstance(budget, list) else budget
    if order == "score" and (isinstance(budget, list) or budget < score.size(1)):
        score = score.detach() if mask is None else score.detach().masked_fill(~mask, -torch.inf)
        index = score.argsort(dim=1, descending=True, stable=True)
        place = torch.arange(score.size(1), device=score.device).expand_as(index)
        if isinstance(budget, list):
            whole = [k >= n for k, n in zip(budget, valid_counts(score, mask), strict=True)]
            behind = (~mask).long().argsort(dim=1, stable=True) if mask is not None else place
            index = torch.where(torch.tensor(whole, device=score.device)[:, None], behind, index)
        rank = torch.empty_like(index).scatter_(1, index, place)
        cluster = torch.where(below(rank, budget), rank, -1)
        index = index[:, :most]
    else:
        kept = _kept(score, budget, mask)
        cluster = torch.where(kept, kept.cumsum(dim=1) - 1, -1)
        index = (~kept).argsort(dim=1, stable=True)[:, :most]
    drops = isinstance(budget, list) or budget < score.size(1)
    return Assignment.from_dense(cluster, budget, mask=mask, drops=drops, centers=index, single=True)


def _fuse_rest(score: Tensor, keep: int | list[int], mask: Tensor | None, average: bool) -> SoftAssignment:
    budget = clamp_budget(keep, score, mask)
    if isinstance(budget, list):
        counts = valid_counts(score, mask)
        single: int | list[int] = [k if k >= n else k - 1 for k, n in zip(budget, counts, strict=True)]
        last = torch.tensor(budget, dtype=torch.long, device=score.device)[:, None] - 1
    else:
        whole = budget >= score.size(1)
        single, last = (budget if whole else budget - 1), budget - 1
    kept = _kept(score, single, mask)
    hard = Assignment.from_dense(torch.where(kept, kept.cumsum(dim=1) - 1, last), budget, mask=mask)
    share = score.float()
    if average:  # divided by the largest first: the sum of many may be infinite
        others = share.masked_fill(kept if mask is None else kept | ~mask, 0.0)
        others = others / others.detach().amax(dim=1, keepdim=True).clamp_min(TINY)
        share = others / others.sum(dim=1, keepdim=True).clamp_min(TINY)
    weight = torch.where(kept, 1.0, share)
    weight = weight.flatten() if mask is None else weight[mask]
    token = torch.arange(hard.num_tokens, device=score.device)
    up = (token, hard.cluster, torch.ones_like(weight, requires_grad=False))
    return SoftAssignment(
        token,
        hard.cluster,
        weight,
        hard.num_tokens,
        hard.num_clusters,
        False,
        up,
        hard.ptr,
        hard.cluster_ptr,
        counts=hard.counts,
    )
