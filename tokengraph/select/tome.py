"""ToMe: merges the most similar pairs by bipartite soft matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_mask, check_tokens
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.raster import in_raster_order
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.edges import merge_halves
from tokengraph.select.tokens import Tokens


@explains
def tome(
    metric: Tensor,
    keep: int | list[int],
    *,
    num_prefix: int = 0,
    mask: Tensor | None = None,
    order: str = "published",
) -> Assignment:
    r"""Merges the ``N - keep`` most similar pairs between two alternating sets of tokens.

    Tokens at even indices of the sequence (prefix tokens counted) form A, those at odd indices B. Each token of A keeps
    its edge to the most similar token of B by cosine; the ``r = N - keep`` heaviest edges are contracted.

    Args:
        metric: Features for the similarity, ``[B, N, D]`` of patch tokens; published: keys, mean over heads.
        keep: Clusters an image. One round can merge at most all of A, so below ``ceil(N / 2)`` the result has as few
            clusters as possible.
        num_prefix: Prefix tokens in front of the sequence; they count in the alternation and never merge.
        mask: ``[B, N]`` bool, True where there is a token; real tokens first.
        order: ``"published"``, or ``"raster"``: clusters in the order of their first tokens.

    Returns:
        The map over ``B*N`` tokens (the True ones of ``mask``). Clusters come in the published order: unmerged tokens
        of A, then B. The order matters because the next layer alternates over it. Unmerged tokens of A are in index
        order, or, without any prefix token, by falling similarity (as published).

    Raises:
        ValueError: If ``keep`` is below 1, tokens are not finite or ``mask`` has holes.

    Cost: ``O(B N^2 D / 4)`` time, ``B N^2 / 4`` floats; no host synchronisation without a mask.

    Example:
        >>> tome(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.5]]]), 3).cluster.tolist()
        [1, 1, 0, 2]

    Ties: cosines above ``1 - 2**-20`` count as equal, and the lower index wins. Equal tokens therefore merge alike
    alone, in any batch and beside padding, as long as float32 products of unit vectors are that accurate. Measured on
    CPU up to ``D = 1024``; TF32 is not accurate enough. Other cosines that differ only by rounding may go either way.

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
        order: ``"published"``, or ``"raster"`` for later modules that read tokens as a sequence. The next layer
            alternates over the order, so from the second merge on ``"raster"`` merges other pairs than the published
            method, because neighbours in a row are then in different sets.
    """

    name: ClassVar[str] = "tome"
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {"token-merging": {}}
    order: str = "published"

    @classmethod
    def published(cls) -> ToMe:
        """Returns the released behaviour, which is the default: clusters in the published order.

        Source: the code of Bolya et al., ICLR 2023.
        """
        return cls()

    def __post_init__(self) -> None:
        _check_order(self.order)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return _tome(tokens.keys, budget, tokens.num_prefix, tokens.mask, self.order)

    def fewest(self, num_tokens: int) -> int:
        """One round keeps at least half of the tokens, ``ceil(N / 2)``."""
        return num_tokens - num_tokens // 2

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the mean of keys over heads, products between the halves, and a maximum over each row."""
        half = num_tokens // 2
        keys = Cost(num_tokens * channels, 4 * num_tokens * (channels + head_width))
        return keys + distance_cost(half, num_tokens - half, head_width) + Cost(half * half, 4 * half * half)


def _check_order(order: str) -> None:
    if order not in ("published", "raster"):
        raise ValueError(f"Expected order to be 'published' or 'raster' (got {order!r}).")


def _tome(
    metric: Tensor, keep: int | list[int], num_prefix: int, mask: Tensor | None, order: str = "published"
) -> Assignment:
    assignment = merge_halves(metric, keep, num_prefix, mask)
    return in_raster_order(assignment) if order == "raster" else assignment
