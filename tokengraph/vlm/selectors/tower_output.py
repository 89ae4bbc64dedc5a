"""VisionZip, PruMerge and FastV's score at a vision tower's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_positive
from tokengraph.maps.hard import Assignment
from tokengraph.maps.join import join
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import among_best, keep_best
from tokengraph.select.prumerge import take_neighbours
from tokengraph.select.tokens import Tokens, clamp_budget
from tokengraph.select.visionzip import visionzip


@dataclass(frozen=True)
class VisionZip(Select):
    """:func:`tokengraph.visionzip` by the tower's attention, within a budget.

    Args:
        contextual: Share of the budget that is contextual; published: 10 of 64.
        tower_layer: Block whose attention is read; ``None``: the one whose output the model reads.

    Source: Yang et al., *VisionZip*, CVPR 2025. Differs: towers without a class token use the attention that a token
    receives; and see the function.
    """

    reads: ClassVar[str] = "keys"
    placement: ClassVar[str] = "after"
    contextual: float = 10 / 64
    tower_layer: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.contextual <= 1.0:
            raise ValueError(f"Expected contextual in [0, 1] (got {self.contextual}).")

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = _one_budget(tokens, budget)
        contextual = min(max(round(keep * self.contextual), 0), keep)
        return visionzip(tokens.x, attended(tokens), tokens.keys, keep - contextual, contextual)


@dataclass(frozen=True)
class PruMerge(Select):
    """:func:`tokengraph.prumerge` by the tower's attention and a budget: the best but one, and one token of the rest.

    Args:
        neighbours: Tokens that each kept one takes up, weighted by their attention.
        tower_layer: Block whose attention is read; ``None``: the one whose output the model reads.

    Source: Shang et al., *LLaVA-PruMerge*, 2024. Differs: a fixed budget; heads' attention and keys are averaged; and
    see the function.
    """

    reads: ClassVar[str] = "keys"
    placement: ClassVar[str] = "after"
    neighbours: int = 32
    tower_layer: int | None = None

    def __post_init__(self) -> None:
        check_positive(neighbours=self.neighbours)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep, score = _one_budget(tokens, budget), attended(tokens)
        kept, unit = among_best(score, keep - 1, None), F.normalize(tokens.keys.float(), dim=2)
        with torch.no_grad():
            made = [take_neighbours(*image, self.neighbours) for image in zip(score, unit, kept, strict=True)]
        joined = join(made, None)
        assert isinstance(joined, SoftAssignment)
        return joined


@dataclass(frozen=True)
class Received(Select):
    """Keeps the tokens that receive the most attention in the tower and drops the others: FastV's score there.

    Args:
        tower_layer: Block whose attention is read; ``None``: the one whose output the model reads.

    Source: the score of Chen et al., *An Image is Worth 1/2 Tokens After Layer 2* (FastV), ECCV 2024, which prunes
    inside the language model by its last query's row; at a tower the analogue is the class token's row, or the mean of
    all rows where there is none.
    """

    reads: ClassVar[str] = "keys"
    placement: ClassVar[str] = "after"
    merges: ClassVar[bool] = False
    tower_layer: int | None = None

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return keep_best(attended(tokens), budget, tokens.mask)


def attended(tokens: Tokens) -> Tensor:
    """How much attention each token has, ``[B, N]``: of the class token, or of all where the tower has none.

    Raises:
        ValueError: If there is no attention.
    """
    if tokens.attention is None:
        raise ValueError(
            "Expected the attention of a vision tower (got features alone). Give pixels, not encoded features; or use "
            "a strategy that reads features alone."
        )
    row = tokens.attention.class_row() if tokens.num_prefix else tokens.attention.column_sums()
    return row.float().mean(dim=1)


def _one_budget(tokens: Tokens, budget: int | list[int]) -> int:
    keep = clamp_budget(budget, tokens.x, tokens.mask)
    if tokens.mask is not None or isinstance(keep, list):
        raise ValueError("Expected images of one size without padding (got a mask). Choose image by image.")
    return keep
