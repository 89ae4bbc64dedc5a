"""A strategy of one's own weights: a matrix, or a function that makes one from the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import PLACEMENTS, READS, Select
from tokengraph.select.tokens import Tokens, clamp_budget

Weights = Callable[[Tokens, int], Tensor]


@dataclass(frozen=True, eq=False)
class FromMatrix(Select):
    r"""Merges tokens by weights of your own: :math:`x'_m = \sum_i W_{im} s_i x_i / \sum_i W_{im} s_i`.

    The schedule says how many clusters there are, and a function of yours makes ``W`` for them. A fixed matrix serves
    one number of tokens, so it acts once in a model: ``tg.attach(model, tg.FromMatrix(w), {2: w.size(-1)})``.

    Args:
        weights: ``(tokens, keep) -> W [B, N, keep]``, floats; see :class:`tokengraph.select.tokens.Tokens`. Or ``W``
            itself, ``[N, M]`` for all images. Gradients reach it. In ragged batches ``keep`` is the largest budget, and
            columns from an image's own budget on are ignored.
        normalize: ``True``: rows are means by ``W * size``; ``False``: plain sums :math:`\sum_i W_{im} x_i`.
        topk: Keeps only each token's k largest weights, scaled to the sum of all.
        lossless: Promises that each token's weights sum to one, so that sizes add up and pooling heads and
            ``"reconstruct"`` count every patch.
        placement: Where in a block it acts; see :class:`tokengraph.Select`. ``"around"`` by :class:`tokengraph.Around`.
        reads: What the function reads of attention: ``"nothing"``, ``"keys"``, ``"class"`` or ``"map"``.

    Lifting spreads each cluster's row over its tokens by the same weights, scaled to a sum of one for each token.

    Example:
        >>> import tokengraph as tg
        >>> graph = tg.TokenGraph.from_tokens(torch.tensor([[[0.0], [2.0], [5.0]]]))
        >>> tg.coarsen(graph, FromMatrix(torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])), 2).graph.x.tolist()
        [[1.0], [5.0]]
    """

    weights: Tensor | Weights
    normalize: bool = True
    topk: int | None = None
    lossless: bool = False
    placement: str = "inside"  # type: ignore[misc]
    reads: str = "nothing"  # type: ignore[misc]
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not callable(self.weights) and not (isinstance(self.weights, Tensor) and self.weights.dim() == 2):
            got = list(self.weights.shape) if isinstance(self.weights, Tensor) else type(self.weights).__name__
            raise TypeError(f"Expected weights as a Tensor [N, M] or a function of (tokens, keep) (got {got}).")
        if self.placement not in PLACEMENTS[:3] or self.reads not in READS:
            raise ValueError(
                f"Expected placement in {', '.join(PLACEMENTS[:3])} and reads in {', '.join(READS)} (got "
                f"{self.placement!r}, {self.reads!r})."
            )

    def __repr__(self) -> str:
        made = list(self.weights.shape) if isinstance(self.weights, Tensor) else getattr(self.weights, "__name__", "")
        return f"FromMatrix({made})"

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """True if the weights are promised to lose nothing."""
        return self.lossless

    @property
    def own_budget(self) -> int | None:
        """Columns of a fixed matrix, which a schedule may call ``"cluster"``."""
        return self.weights.size(1) if isinstance(self.weights, Tensor) else None

    def makes(self, keep: int, num_tokens: int, grid: tuple[int, int] | None = None) -> int:
        """As many as a fixed matrix has columns; otherwise as asked."""
        return self.own_budget or min(keep, num_tokens)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`.

        Raises:
            ValueError: If the matrix does not fit the tokens or the budget.
        """
        keep = clamp_budget(budget, tokens.x, tokens.mask)
        most = max(keep, default=0) if isinstance(keep, list) else keep
        images, count = tokens.x.shape[:2]
        if isinstance(self.weights, Tensor):
            matrix = self.weights.to(tokens.x.device).expand(images, -1, -1)
        else:
            matrix = self.weights(tokens, most)
        if matrix.dim() != 3 or tuple(matrix.shape[:2]) != (images, count) or matrix.size(2) != most:
            raise ValueError(
                f"Expected weights of shape [B, N, keep] = {[images, count, most]} (got {list(matrix.shape)})."
            )
        with torch.autocast(tokens.x.device.type, enabled=False):
            return SoftAssignment.from_matrix(
                matrix.float(), keep, normalize=self.normalize, mask=tokens.mask, topk=self.topk, lossless=self.lossless
            )
