"""ToMe: bipartite soft matching; the most similar pairs merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.maps.hard import Assignment
from tokengraph.maps.raster import in_raster_order
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens, clamp_budget, valid_counts

SAME = 1.0 - 2.0**-20  # a cosine from here on is 1 up to rounding: such tokens tie, and the index decides


def tome(
    metric: Tensor,
    keep: int | list[int],
    *,
    num_prefix: int = 0,
    mask: Tensor | None = None,
    order: str = "published",
) -> Assignment:
    r"""Merges the ``N - keep`` most similar pairs between two alternating sets of tokens.

    Tokens at even places of the sequence (prefix tokens counted) form A, those at odd places B. Each token of A keeps
    its edge to the most similar token of B by cosine; the ``r`` heaviest edges are contracted.

    Args:
        metric: What similarity is measured on, published: keys, mean over heads; ``[B, N, D]`` of patch tokens.
        keep: Clusters an image. One round can at most merge all of A: fewer than ``ceil(N / 2)`` are not reached, the
            result then has as few as possible.
        num_prefix: Prefix tokens in front of the sequence: they take part in the alternation, never in a merge.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.
        order: ``"published"``, or ``"raster"``: clusters as their first tokens follow.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``). Clusters come in the published order: unmerged tokens
        of A, then B. The next layer alternates over that order, so it matters. Unmerged tokens of A follow their index;
        without any prefix token they follow falling similarity, lowest last (as published).

    Raises:
        ValueError: If ``keep`` is below 1, tokens are not finite or ``mask`` has holes.

    Cost: ``O(B N^2 D / 4)`` time, ``B N^2 / 4`` floats; no host synchronisation without a mask.

    Example:
        >>> tome(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.5]]]), 3).cluster.tolist()
        [1, 1, 0, 2]

    Ties: cosines from ``1 - 2**-20`` on count as equal, and the lower index decides. Equal tokens therefore merge alike
    alone, in any batch and beside padding, where float32 products of unit vectors stay within that: measured on CPU up
    to ``D = 1024``; not where TF32 is allowed. Other cosines that only rounding tells apart may go either way.

    Source: Bolya et al., *Token Merging: Your ViT But Faster*, ICLR 2023, section 3. Differs: zero vectors have
    similarity 0 (published: NaN), ties go to the lower index.
    """
    check_tokens(metric)
    check_mask(mask, metric, leading=True)
    check_finite(metric if mask is None else metric[mask])
    _check_order(order)
    return _tome(metric, keep, num_prefix, mask, order)


@dataclass(frozen=True)
class ToMe(Select):
    """ToMe as a strategy, between attention and MLP, on the attention keys; see :func:`tome`.

    Args:
        order: ``"published"``, or ``"raster"`` for what reads tokens as a sequence behind the model. The next layer
            alternates over the order, so from the second merge on ``"raster"`` merges other pairs than the published
            method: neighbours in a row then lie in different sets.
    """

    name: ClassVar[str] = "tome"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"token-merging": {}}
    order: str = "published"

    def __post_init__(self) -> None:
        _check_order(self.order)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _tome(tokens.keys, budget, tokens.num_prefix, tokens.mask, self.order)

    def fewest(self, num_tokens: int) -> int:
        """A round leaves at least one set: ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Keys averaged over heads, products between the halves, a maximum over each row."""
        half = num_tokens // 2
        keys = Cost(num_tokens * channels, 4 * num_tokens * (channels + head_width))
        return keys + distance_cost(half, num_tokens - half, head_width) + Cost(half * half, 4 * half * half)


def _check_order(order: str) -> None:
    if order not in ("published", "raster"):
        raise ValueError(f"Expected order to be 'published' or 'raster' (got {order!r}).")


def _tome(
    metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None, order: str = "published"
) -> Assignment:
    assignment = _merge(metric, keep, num_prefix, mask)
    return in_raster_order(assignment) if order == "raster" else assignment


def _merge(metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None) -> Assignment:
    images, tokens = metric.shape[:2]
    first = num_prefix % 2  # patch 0 sits at place P: in A when P is even
    merged, kept = _merges(metric, keep, first, mask)
    if merged == 0 or tokens < 2 or images == 0:
        return Assignment.from_dense(torch.arange(tokens, device=metric.device).expand(images, -1), kept, mask=mask)
    with torch.no_grad(), torch.autocast(metric.device.type, enabled=False):
        order, partner = _match(metric, first, mask, merged if isinstance(merged, int) else max(merged, default=0))
        sources = order[:, : partner.size(1)]
        # Columns, one row an image, where images differ.
        removed = merged if isinstance(merged, int) else torch.tensor(merged, device=order.device)[:, None]
        in_a = order.size(1) if mask is None else mask[:, first::2].sum(dim=1, keepdim=True)
        leaves = torch.arange(sources.size(1), device=order.device) < removed
        if num_prefix:  # unmerged tokens of A follow their index
            gone = torch.zeros_like(order, dtype=torch.bool).scatter_(1, sources, leaves.expand_as(sources))
            number = (~gone).cumsum(dim=1) - 1
        else:  # or their similarity
            place = torch.arange(order.size(1), device=order.device) - removed
            number = torch.empty_like(order).scatter_(1, order, place.expand_as(order))
        target = in_a - removed + partner
        if isinstance(removed, Tensor):
            target = torch.where(leaves, target, number.gather(1, sources))
        cluster_b = in_a - removed + torch.arange(tokens - order.size(1), device=order.device)
        cluster = _interleave(number.scatter(1, sources, target), cluster_b.expand(images, -1), first)
        if isinstance(removed, Tensor):  # an image that loses nothing keeps its order
            cluster = torch.where(removed == 0, torch.arange(tokens, device=order.device), cluster)
        return Assignment.from_dense(cluster, kept, mask=mask)


def _merges(
    metric: Tensor, keep: int | list[int], first: int, mask: Tensor | None
) -> tuple[int, int] | tuple[list[int], list[int]]:
    """How many tokens each image loses, at most its smaller set, and how many clusters it keeps."""
    budget = clamp_budget(keep, metric, mask)
    if isinstance(budget, int) and mask is None:
        merged = min(metric.size(1) - budget, metric.size(1) // 2)
        return merged, metric.size(1) - merged
    counts = valid_counts(metric, mask)
    budgets = budget if isinstance(budget, list) else [budget] * len(counts)
    in_a = [(n + 1 - first) // 2 for n in counts]
    lost = [min(n - k, a, n - a) for n, k, a in zip(counts, budgets, in_a, strict=True)]
    return lost, [n - m for n, m in zip(counts, lost, strict=True)]


def _match(metric: Tensor, first: int, mask: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """Tokens of A by falling similarity, ``[B, N/2]``, and the partners in B of the first ``most``, ``[B, most]``."""
    unit = F.normalize(metric.detach().float(), dim=-1)
    # Products of odd widths round by where a row lies in memory: zeros make the width even for all.
    unit = F.pad(unit, (0, -unit.size(2) % 16)) if unit.size(2) % 16 else unit
    score = torch.matmul(unit[:, first::2], unit[:, 1 - first :: 2].transpose(1, 2))
    score.clamp_max_(SAME)
    if mask is not None:
        score = score.masked_fill(~mask[:, None, 1 - first :: 2], -torch.inf)
    best = score.amax(dim=2)
    if mask is not None:
        best = best.masked_fill(~mask[:, first::2], -torch.inf)
    order = best.argsort(dim=1, descending=True, stable=True)
    # argmax is slow, so only for the tokens that may merge.
    return order, score.gather(1, order[:, :most, None].expand(-1, -1, score.size(2))).argmax(dim=2)


def _interleave(a: Tensor, b: Tensor, first: int) -> Tensor:
    """Puts A at places ``first, first + 2, ...`` and B at the others: ``[B, N]``."""
    out = a.new_empty(a.size(0), a.size(1) + b.size(1))
    out[:, first::2] = a
    out[:, 1 - first :: 2] = b
    return out
