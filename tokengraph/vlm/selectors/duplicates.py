"""Drops duplicates: tokens that resemble a few pivots most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_positive, check_tokens
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens, clamp_budget
from tokengraph.vlm.selectors.keep import keep_tokens


def least_duplicated(x: Tensor, keep: int, *, pivots: int = 8) -> Assignment:
    r"""Keeps the pivots, and those tokens that resemble any of them least.

    .. math:: P = \operatorname{top}_p \lVert x_i \rVert, \qquad
              \text{kept} = P \cup \operatorname{bottom}_{K-p} \max_{j \in P} \cos(x_i, x_j)

    Args:
        x: Features, ``[B, N, C]``.
        keep: Tokens an image.
        pivots: Pivots an image; at most half of ``keep``, at least one.

    Returns:
        The map, with ``centers``; kept tokens stay in order.

    Raises:
        ValueError: If ``keep`` or ``pivots`` is below 1, or features are not finite.

    Cost: ``O(B N p C)``; no host synchronisation.

    Example:
        >>> x = torch.tensor([[[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
        >>> least_duplicated(x, 2, pivots=1).cluster.tolist()
        [0, 2, 1]

    Ties: the lower index.

    Source: the idea of Wen et al., *Stop Looking for Important Tokens* (DART), 2025, which prunes inside the language
    model and takes pivots by the norms of keys there. Here: features between encoder and language model.
    """
    check_tokens(x)
    check_positive(pivots=pivots)
    check_finite(x)
    each = clamp_budget(keep, x, None)
    assert isinstance(each, int)
    return _least_duplicated(x, each, pivots)


@dataclass(frozen=True)
class Duplicates(Select):
    """:func:`least_duplicated` as a strategy on features alone.

    Args:
        pivots: Pivots an image.
    """

    reads: ClassVar[str] = "nothing"
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    pivots: int = 8

    def __post_init__(self) -> None:
        check_positive(pivots=self.pivots)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = clamp_budget(budget, tokens.x, tokens.mask)
        if tokens.mask is not None or isinstance(keep, list):
            raise ValueError("Expected images of one size without padding (got a mask). Choose image by image.")
        return _least_duplicated(tokens.x, keep, self.pivots)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Counts the products with the pivots."""
        return Cost(2 * num_tokens * self.pivots * channels, 4 * num_tokens * channels)


@torch.no_grad()
def _least_duplicated(x: Tensor, keep: int, pivots: int) -> Assignment:
    rows = x.float()
    count = max(1, min(pivots, keep // 2))
    norm = torch.linalg.vector_norm(rows, dim=2)
    first = norm.argsort(dim=1, descending=True, stable=True)[:, :count]
    unit = F.normalize(rows, dim=2, eps=1e-6)
    pivot = unit.gather(1, first[..., None].expand(-1, -1, x.size(2)))
    likeness = (unit @ pivot.transpose(1, 2)).amax(dim=2).scatter(1, first, -torch.inf)  # pivots come first
    return keep_tokens(likeness.argsort(dim=1, stable=True)[:, :keep], x.size(1))
