"""Token Transforming: every token gives a share of itself to every token that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_positive, check_tokens
from tokengraph.flat.faint import drop_faint
from tokengraph.flat.layout import take_rows
from tokengraph.flat.segment import as_type
from tokengraph.kinds import explains
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import among_best
from tokengraph.select.parts.scores.norm import feature_norm
from tokengraph.select.parts.scores.received import received
from tokengraph.select.tokens import Tokens, clamp_budget

IMPORTANCE = ("class", "received", "norm")


@explains
def token_transforming(
    keys: Tensor,
    importance: Tensor,
    keep: int | list[int],
    *,
    scale: float = 10.0,
    topk: int | None = None,
    keep_self: bool = False,
    mask: Tensor | None = None,
) -> SoftAssignment:
    r"""Mixes all tokens into the most important ones, by a softmax of cosines.

    With D the ``keep`` most important tokens in the order of their indices:

    .. math:: P_{im} = \operatorname{softmax}_{m \in D} \tau \cos(k_i, k_m), \qquad
              x'_m = \frac{\sum_i P_{im} s_i x_i}{\sum_i P_{im} s_i}, \qquad s'_m = \sum_i P_{im} s_i, \qquad
              y_i = \sum_m P_{im} x'_m

    Args:
        keys: What similarity is measured on, ``[B, N, D]``. Gradients reach it by the weights.
        importance: ``[B, N]``; ties go to the lower index.
        keep: Clusters an image, at least 1. An image that keeps all its tokens keeps them as they are.
        scale: :math:`\tau`; the larger, the more a token goes to its most similar destination alone.
        topk: Only the k largest weights of each token count, scaled to a sum of one; ``None``: all.
        keep_self: Whether destinations stay with themselves alone, and do not mix.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A map with weights P down and up, whose ``centers`` are D.

    Raises:
        ValueError: If ``keep`` or ``topk`` is below 1, or arguments are not finite or do not fit.

    Cost: ``O(B N K D)`` time, ``B N K`` edges (``B N k`` with ``topk``); no host synchronisation without a mask.

    Example:
        >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
        >>> soft = token_transforming(keys, torch.tensor([[0.5, 0.4, 0.1]]), 2, scale=100.0)
        >>> soft.reduce(torch.tensor([[2.0], [5.0], [4.0]]))[0].tolist()
        [[3.0], [5.0]]

    Source: **our own definition**. *Token Transforming* (arXiv 2506.05709) published the idea, a matrix by which many
    tokens go to many, but neither code nor enough to rebuild its matrix: nothing here is as in the paper.
    """
    check_tokens(keys, name="keys")
    check_mask(mask, keys)
    check_finite(keys if mask is None else keys[mask], "keys")
    if not isinstance(importance, Tensor) or importance.shape != keys.shape[:2]:
        got = list(importance.shape) if isinstance(importance, Tensor) else type(importance).__name__
        raise ValueError(f"Expected importance of shape [B, N] = {list(keys.shape[:2])} (got {got}).")
    check_finite((importance if mask is None else importance[mask])[..., None], "importance")
    _check(scale, topk)
    return _token_transforming(keys, importance, keep, scale, topk, keep_self, mask)


@dataclass(frozen=True)
class TokenTransforming(Select):
    """Token Transforming by our own definition, after a block, on its attention keys; see :func:`token_transforming`.

    Score: class attention. Graph: from all tokens to those that stay. Choice: the most important. Reduction: soft.

    Args:
        scale: Factor on cosines before the softmax.
        importance: ``"class"``: attention of the first token, mean over heads, or where no prefix token is in front,
            as ``"received"``: attention that a token receives; ``"norm"``: length of the features, for use outside a
            model.
        topk: As for :func:`token_transforming`.
        keep_self: Likewise.
    """

    name: ClassVar[str] = "token-transforming"
    placement: ClassVar[str] = "after"
    scale: float = 10.0
    importance: str = "class"
    topk: int | None = None
    keep_self: bool = False

    def __post_init__(self) -> None:
        _check(self.scale, self.topk)
        if self.importance not in IMPORTANCE:
            raise ValueError(f"Expected importance to be one of {', '.join(IMPORTANCE)} (got {self.importance!r}).")

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if self.importance == "norm":
            score = feature_norm(tokens.x)
        elif tokens.attention is None:
            raise ValueError(
                "Expected tokens with attention (got tokens outside a model's block). Use importance='norm'."
            )
        elif self.importance == "class" and tokens.num_prefix:
            score = tokens.class_attention()
        else:
            score = received(tokens.attention)
        return _token_transforming(tokens.keys, score, budget, self.scale, self.topk, self.keep_self, tokens.mask)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, a row of the map, cosines to the destinations and their softmax."""
        edges = num_tokens * keep
        keys = Cost(3 * num_tokens * channels, 4 * num_tokens * (2 * channels + head_width))
        return keys + distance_cost(num_tokens, keep, head_width) + Cost(4 * edges, 16 * edges)


def _check(scale: float, topk: int | None) -> None:
    if isinstance(scale, bool) or not 0 <= scale < float("inf"):
        raise ValueError(f"Expected a finite scale >= 0 (got {scale!r}).")
    if topk is not None:
        check_positive(topk=topk)


def _token_transforming(
    keys: Tensor,
    importance: Tensor,
    keep: int | list[int],
    scale: float,
    topk: int | None,
    keep_self: bool,
    mask: Tensor | None,
) -> SoftAssignment:
    budget = clamp_budget(keep, keys, mask)
    tokens = keys.size(1)
    most = max(budget, default=0) if isinstance(budget, list) else budget
    with torch.autocast(keys.device.type, enabled=False):
        with torch.no_grad():
            kept = among_best(importance, budget, mask)
            centers = (~kept).argsort(dim=1, stable=True)[:, :most]
        own = centers[:, None] == torch.arange(tokens, device=keys.device)[:, None]  # [B, N, K]
        if not isinstance(budget, list) and budget == tokens:
            return SoftAssignment.from_matrix(own.float(), budget, topk=1, mask=mask, centers=centers, lossless=True)
        keys = as_type(keys, torch.float32)
        keys = keys if mask is None else keys.masked_fill(~mask[..., None], 0.0)
        length = torch.linalg.vector_norm(keys, dim=2, keepdim=True)
        unit = keys / torch.where(length > 0, length, 1.0)  # a zero row has cosine 0 with all, and a finite gradient
        logits = scale * torch.matmul(unit, take_rows(unit, centers).transpose(1, 2))
        alone = None
        if isinstance(budget, list):
            each = torch.tensor(budget, device=keys.device)[:, None]
            spare = torch.arange(most, device=keys.device) >= each.clamp_min(1)
            logits = logits.masked_fill(spare[:, None], -torch.inf)
            counts = tokens if mask is None else mask.sum(dim=1, keepdim=True)
            alone = (each == counts)[..., None]  # an image that keeps all its tokens
        weight = drop_faint(logits.softmax(dim=2))
        if keep_self:
            alone = kept[..., None] if alone is None else alone | kept[..., None]
        if alone is not None:
            weight = torch.where(alone, own.to(weight.dtype), weight)
    return SoftAssignment.from_matrix(weight, budget, topk=topk, mask=mask, centers=centers, lossless=True)
