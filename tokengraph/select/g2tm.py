"""G2TM: patches that touch and resemble each other become one token, in connected components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_grid, check_tokens
from tokengraph.flat.segment import as_type
from tokengraph.flat.tables import table
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.parts.choices.roots import all_single, map_of_roots
from tokengraph.select.parts.graphs.components import components_left
from tokengraph.select.threshold import ThresholdSelect
from tokengraph.select.tokens import Tokens, clamp_budget

TAU = {"ade20k": 0.88, "cityscapes": 0.94}


@explains
def connected_components(x: Tensor, grid: tuple[int, ...], tau: float, keep: int | list[int] = 1) -> Assignment:
    r"""Merges the connected components of the grid's edges between similar patches.

    Patches that share a side are connected where :math:`\cos(x_i, x_j) > \tau`, strictly.

    Args:
        x: Tokens of the full grid, ``[B, N, C]``; published: between attention and MLP of the second block.
        grid: ``(H, W)``, any rectangle; ``(T, H, W)`` for a video, where patches touch in time too.
        tau: The threshold. From 1 on nothing merges; below -1 each image becomes one token.
        keep: The fewest clusters that an image may have left; the lightest edges are then left out.

    Returns:
        The map over ``B*N`` tokens. Clusters are numbered by their first patches in raster order.

    Raises:
        ValueError: If ``keep`` is below 1, the grid does not fit, or tokens are not finite.

    Cost: ``O(B N C)`` for the ``2 N`` cosines, and a few passes over the edges in each of about ``log N`` rounds; on
    CUDA one host synchronisation a round.

    Example:
        >>> connected_components(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0]]]), (2, 2), 0.8).cluster
        tensor([0, 0, 1, 0])

    Source: *G2TM*, VISAPP 2026, and its code. Differs: any rectangle (published: squares), clusters in raster order
    (published: of a Python set), tensors alone, so that no image waits for a loop over its edges; a patch that is not
    finite, inside a model, has no edge.
    """
    check_tokens(x)
    grid = check_grid(grid, x.size(1), video=True)
    check_finite(x)
    return _connected(x, grid, tau, keep)


@dataclass(frozen=True)
class G2TM(ThresholdSelect):
    """G2TM as a strategy, between attention and MLP, once; see :func:`connected_components`.

    Score: cosine of neighbours. Graph: the grid. Choice: components by threshold. Reduction: mean. Images keep
    different numbers of tokens: ``handle.trace.counts_per_image(layer)``.

    Args:
        tau: The threshold; published 0.88 for ADE20K, 0.94 for Cityscapes.
        layer: Blocks that are finished then; a schedule says another.
        official: As released by default: attention without sizes. Their other forms are ``attach``'s
            ``prop_attn="log"``, the library's default, and ``"inverse"``.
    """

    name: ClassVar[str] = "g2tm"
    needs_grid: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    tau: float = 0.88
    layer: int = 2
    official: bool = False

    @classmethod
    def published(cls, data: str = "ade20k") -> G2TM:
        """The released settings for ``"ade20k"`` or ``"cityscapes"``.

        Raises:
            ValueError: For another data set.
        """
        if data not in TAU:
            raise ValueError(f"Expected data to be 'ade20k' or 'cityscapes' (got {data!r}). Set tau for others.")
        return cls(TAU[data], official=True)

    def own_layers(self) -> tuple[int, ...]:
        """See :class:`~tokengraph.select.threshold.ThresholdSelect`."""
        return (self.layer,)

    @property
    def prop_attn(self) -> bool | str:
        """Attention weighs keys by size, but not as released."""
        return "none" if self.official else True

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.grid is None or not tokens.full:
            raise ValueError(
                f"Expected the full patch grid for G2TM (got {tokens.x.size(1)} tokens). It acts once, before anything "
                "else removes tokens."
            )
        return _connected(tokens.x, tokens.grid, self.tau, budget)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Norms, and two cosines a token."""
        return Cost(7 * num_tokens * channels, 16 * num_tokens * channels)


def _connected(x: Tensor, grid: tuple[int, ...], tau: float, keep: int | list[int]) -> Assignment:
    budget = clamp_budget(keep, x, None)
    images, tokens = x.shape[:2]
    floors = budget if isinstance(budget, list) else [budget] * images
    if images == 0 or all(k >= tokens for k in floors):
        return all_single(x, tokens, None)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        ends = tuple(end.to(x.device) for end in grid_pairs(*grid))
        least = torch.tensor(floors, device=x.device)
        root = components_left((ends[0], ends[1]), neighbour_cosines(x, grid), tau, least, tokens)
        return map_of_roots(root)


@table(64)
def grid_pairs(*grid: int) -> tuple[Tensor, Tensor]:
    """Both ends of the edges of :func:`neighbour_cosines`, ``[E]`` each; the first is the lower."""
    place = torch.arange(torch.Size(grid).numel()).view(grid)
    axes = range(len(grid))
    first = [place.narrow(axis, 0, max(grid[axis] - 1, 0)).flatten() for axis in axes]
    second = [place.narrow(axis, min(1, grid[axis]), max(grid[axis] - 1, 0)).flatten() for axis in axes]
    return torch.cat(first), torch.cat(second)


def neighbour_cosines(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Cosines of the patches ``[B, N, C]`` that share a side, ``[B, E]`` float32, at most 1; axis by axis."""
    wide = as_type(x.detach(), torch.float32)
    unit = torch.nn.functional.normalize(wide, dim=2).unflatten(1, grid)
    found = []
    for axis, side in enumerate(grid):
        a, b = unit.narrow(axis + 1, 0, max(side - 1, 0)), unit.narrow(axis + 1, min(1, side), max(side - 1, 0))
        found.append((a * b).sum(dim=-1).flatten(1))
    return torch.cat(found, dim=1).clamp_max_(1.0)
