"""VisionZip, PruMerge and FastV's score at a vision tower's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_positive
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.best import keep_best
from tokengraph.select.tokens import Tokens, clamp_budget
from tokengraph.vlm.selectors.keep import keep_tokens


@dataclass(frozen=True)
class VisionZip(Select):
    """Keeps the most attended tokens, and merges the rest into a few contextual ones by their keys.

    The rest merges into every M/c-th of its tokens, each token into the target with the most similar key; a contextual
    token is the mean of its target and the tokens that join it.

    Args:
        contextual: Share of the budget that is contextual; published: 10 of 64.
        tower_layer: Block whose attention is read; ``None``: the one whose output the model reads.

    Source: Yang et al., *VisionZip*, CVPR 2025. Differs: a contextual token is a mean, not a sum of two; towers
    without a class token use the attention that a token receives.
    """

    reads: ClassVar[str] = "keys"
    placement: ClassVar[str] = "after"
    contextual: float = 10 / 64
    tower_layer: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.contextual <= 1.0:
            raise ValueError(f"Expected contextual in [0, 1] (got {self.contextual}).")

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        keep = _one_budget(tokens, budget)
        contextual = min(max(round(keep * self.contextual), 0), keep)
        return zip_tokens(attended(tokens), tokens.keys, keep - contextual, contextual)


@dataclass(frozen=True)
class PruMerge(Select):
    """Keeps the most attended tokens; each takes up its nearest by keys, and one more token stands for all others.

    Args:
        neighbours: Tokens that each kept one takes up, weighted by their attention.
        tower_layer: Block whose attention is read; ``None``: the one whose output the model reads.

    Source: Shang et al., *LLaVA-PruMerge*, 2024. Differs: each image by itself; a fixed budget; means divide by their
    weights; heads' attention is averaged.
    """

    reads: ClassVar[str] = "keys"
    placement: ClassVar[str] = "after"
    neighbours: int = 32
    tower_layer: int | None = None

    def __post_init__(self) -> None:
        check_positive(neighbours=self.neighbours)

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        return take_up(attended(tokens), tokens.keys, _one_budget(tokens, budget), self.neighbours)


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


@torch.no_grad()
def zip_tokens(score: Tensor, keys: Tensor, dominant: int, contextual: int) -> Assignment:
    """Maps ``[B, N]`` tokens to ``dominant`` ones by score and ``contextual`` clusters of the rest by keys."""
    count = score.size(1)
    order = score.argsort(dim=1, descending=True, stable=True)
    best = order[:, :dominant]
    if contextual == 0:
        return keep_tokens(best, count)
    rest = order[:, dominant:].sort(dim=1).values
    step = max(1, rest.size(1) // contextual)
    targets = rest[:, ::step][:, :contextual]
    unit = F.normalize(keys.float(), dim=2, eps=1e-6)
    similar = unit @ unit.gather(1, targets[..., None].expand(-1, -1, unit.size(2))).transpose(1, 2)
    center = targets.gather(1, similar.argmax(dim=2))
    centers = torch.cat([best, targets], dim=1)
    center = center.scatter(1, centers, centers)
    place = centers.sort(dim=1).values
    number = torch.zeros_like(center).scatter_(1, place, torch.arange(place.size(1)).to(place).expand_as(place))
    return Assignment.from_dense(number.gather(1, center), place.size(1), centers=place)


@torch.no_grad()
def take_up(score: Tensor, keys: Tensor, keep: int, neighbours: int) -> SoftAssignment:
    """Maps ``[B, N]`` tokens to the ``keep - 1`` best with their neighbours, and one of all others.

    The last cluster stands at the place of the best of the others; with ``keep`` of 1 it is the only one.
    """
    batch, count = score.shape
    device = score.device
    order = score.argsort(dim=1, descending=True, stable=True)
    best, rest = order[:, : keep - 1], order[:, keep - 1 :]
    near = min(neighbours, count - 1)
    unit = F.normalize(keys.float(), dim=2, eps=1e-6)
    own = unit.gather(1, best[..., None].expand(-1, -1, unit.size(2)))
    similar = (own @ unit.transpose(1, 2)).scatter(2, best[..., None], -torch.inf)
    taken = similar.argsort(dim=2, descending=True, stable=True)[..., :near].flatten(1)
    cluster = torch.arange(keep - 1, device=device)
    token = torch.cat([best, taken, rest], dim=1)
    home = torch.cat([cluster, cluster.repeat_interleave(near), cluster.new_full((rest.size(1),), keep - 1)])
    weight = score.gather(1, torch.cat([taken, rest], dim=1))
    weight = torch.cat([torch.ones_like(best, dtype=weight.dtype), weight], dim=1)
    image = torch.arange(batch, device=device)[:, None]
    centers = torch.cat([best, rest[:, :1]], dim=1) + image * count
    return SoftAssignment(
        (token + image * count).flatten(),
        (home + image * keep).flatten(),
        weight.flatten(),
        batch * count,
        batch * keep,
        ptr=torch.arange(batch + 1, device=device) * count,
        cluster_ptr=torch.arange(batch + 1, device=device) * keep,
        centers=centers.flatten(),
    )


def _one_budget(tokens: Tokens, budget: int | list[int]) -> int:
    keep = clamp_budget(budget, tokens.x, tokens.mask)
    if tokens.mask is not None or isinstance(keep, list):
        raise ValueError("Expected images of one size without padding (got a mask). Choose image by image.")
    return keep
