"""ToMA: destinations by facility location, and soft merging into them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost, distance_cost
from tokengraph.errors import check_finite, check_grid, check_mask, check_tokens
from tokengraph.flat.faint import drop_faint
from tokengraph.flat.layout import take_rows
from tokengraph.flat.tables import equal_ptr, table
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.around import Around
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.facility import cover
from tokengraph.select.parts.choices.roots import all_single
from tokengraph.select.parts.choices.to_centers import cosines, to_centers
from tokengraph.select.tokens import Tokens, clamp_budget

Grid = tuple[int, int]


@explains
def facility_location(
    x: Tensor,
    keep: int,
    *,
    grid: Grid | None = None,
    tiles: Grid | None = None,
) -> Tensor:
    r"""Chooses tokens that cover the others best: greedily for :math:`\sum_j \max_{d \in D} \cos(x_j, x_d)`.

    Args:
        x: Token features, ``[B, N, C]``.
        keep: Destinations an image; each tile has as many as the others, or the first ones one more.
        grid: ``(H, W)``, with ``tiles``.
        tiles: Rows and columns of a tile, which must divide the grid; each chooses by itself. ``None``: one region.

    Returns:
        ``[B, keep]`` token ids, tile by tile, in the order of choice.

    Raises:
        ValueError: If arguments do not fit or tokens are not finite.

    Cost: ``O(B keep N^2)`` in one region, ``O(B keep N t)`` with t tokens a tile; ``keep`` by tile steps in turn.

    Example:
        >>> facility_location(torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]]), 2).tolist()
        [[1, 2]]

    Source: Lu et al., *ToMA: Token Merge with Attention for Diffusion Models*, ICML 2025, and its code. Differs: each
    image has its own destinations, none is chosen twice, gains within ``1e-6 N`` of the best tie and the lower index
    wins, zero vectors cover nothing.
    """
    check_tokens(x)
    check_finite(x)
    if tiles is not None:
        _check_tiles(check_grid(grid, x.size(1)), tiles)  # type: ignore[arg-type]
    keep = clamp_budget(keep, x, None)  # type: ignore[assignment]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _choose(x, keep, None if tiles is None else grid, tiles)[0]


@explains
def toma(
    x: Tensor,
    keep: int | list[int],
    *,
    scale: float = 20.0,
    grid: Grid | None = None,
    tiles: Grid | None = None,
    mask: Tensor | None = None,
) -> Assignment | SoftAssignment:
    r"""Merges all tokens of a tile softly into its destinations D of :func:`facility_location`.

    .. math:: P_{jm} = \operatorname{softmax}_{m \in D} \tau \cos(x_j, x_m), \qquad
              x'_m = \frac{\sum_j P_{jm} s_j x_j}{\sum_j P_{jm} s_j}, \qquad y_j = \sum_m P_{jm} x'_m

    Args:
        x: Token features, ``[B, N, C]``. Gradients reach it by the weights.
        keep: Clusters an image. An image that keeps all its tokens keeps them as they are.
        scale: :math:`\tau`; infinite: a hard map, each token to its most similar destination.
        grid: ``(H, W)``, with ``tiles``.
        tiles: As for :func:`facility_location`; without ``mask``.
        mask: ``[B, N]`` bool, True where there is a token.

    Returns:
        A map with weights P down and up, whose ``centers`` are D, tile by tile in the order of choice.

    Raises:
        ValueError: If arguments do not fit, ``keep`` is below 1, or tokens are not finite.

    Cost: that of :func:`facility_location`; ``B N keep`` edges in one region, ``B t keep`` with t tokens a tile.

    Source: as :func:`facility_location`. Differs: rows are weighted by size (published: sizes never are).
    """
    check_tokens(x)
    check_mask(mask, x)
    check_finite(x if mask is None else x[mask])
    _check_scale(scale)
    if tiles is not None:
        _check_tiles(check_grid(grid, x.size(1)), tiles)  # type: ignore[arg-type]
        if mask is not None:
            raise ValueError("Expected tiles without a mask (got both). Padded images have no tiles in common.")
    return _toma(x, keep, scale, None if tiles is None else grid, tiles, mask)


@dataclass(frozen=True)
class ToMA(Select):
    """ToMA as a strategy, before a block, on the tokens; see :func:`toma`.

    Score and choice: facility location. Graph: to all destinations of a tile. Reduction: soft. Tokens return by
    ``"reconstruct"``, or around each module: ``tg.Around(tg.ToMA(), "both", sizes=False)``, as published.

    Args:
        scale: Factor on cosines before the softmax; 1000 is published, where weights are all but hard. The default 20
            is our own choice and not tuned.
        tiles: Rows and columns of a tile. Where they do not divide the grid, or tokens are no longer the grid's, one
            region.
    """

    name: ClassVar[str] = "toma"
    placement: ClassVar[str] = "before"
    reads: ClassVar[str] = "nothing"
    scale: float = 20.0
    tiles: Grid | None = None

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.tiles is not None:
            _check_tiles(None, self.tiles)

    @staticmethod
    def published() -> Select:
        """Returns the released form: around attention and MLP, scale 1000, tiles of 4 x 4, sizes never used."""
        return Around(ToMA(1000.0, (4, 4)), "both", sizes=False)

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """Images of several grids go one by one if it merges in tiles: each has its own."""
        return self.tiles is not None

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment | SoftAssignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        grid = tokens.grid if self.tiles is not None and tokens.full and tokens.mask is None else None
        if grid is None or len(grid) != 2 or any(a % b for a, b in zip(grid, self.tiles or (1, 1), strict=True)):
            return _toma(tokens.x, budget, self.scale, None, None, tokens.mask)
        return _toma(tokens.x, budget, self.scale, (grid[0], grid[1]), self.tiles, None)

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Products of all pairs, a pass over them for each destination, and the softmax; in tiles their share."""
        tile = num_tokens if self.tiles is None else min(math.prod(self.tiles), num_tokens)
        pairs, edges = num_tokens * tile, tile * keep
        rounds = max(keep * tile // max(num_tokens, 1), 1)
        return distance_cost(num_tokens, tile, channels) + Cost(3 * rounds * pairs + 4 * edges, 12 * rounds * pairs)


def _check_scale(scale: float) -> None:
    if isinstance(scale, bool) or not scale >= 0:
        raise ValueError(f"Expected scale >= 0 (got {scale!r}).")


def _check_tiles(grid: tuple[int, ...] | None, tiles: Grid) -> None:
    if len(tiles) != 2 or any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in tiles):
        raise ValueError(f"Expected tiles as (rows, columns), each at least 1 (got {tiles!r}).")
    if grid is not None and (len(grid) != 2 or any(side % tile for side, tile in zip(grid, tiles, strict=True))):
        raise ValueError(f"Expected tiles that divide the grid {tuple(grid)} (got {tiles}).")


@table(64)
def _tiled(height: int, width: int, down: int, across: int) -> Tensor:
    """Token ids of each tile, ``[tiles, tokens a tile]``, tiles and tokens row by row."""
    ids = torch.arange(height * width).view(height // down, down, width // across, across)
    return ids.transpose(1, 2).reshape(-1, down * across)


@table(64)
def _places(tiles: int, keep: int, tokens: int) -> Tensor:
    """Flat places of the destinations among ``[tiles, rounds]``: the first tiles have one more where it is uneven."""
    rounds = min(-(-keep // tiles), tokens)
    each = torch.tensor([keep // tiles + (i < keep % tiles) for i in range(tiles)])
    return (torch.arange(rounds) < each[:, None]).flatten().nonzero()[:, 0]


def _choose(x: Tensor, keep: int, grid: Grid | None, tiles: Grid | None) -> tuple[Tensor, Tensor | None]:
    """Destinations ``[B, keep]`` of equal images, and the token ids of each tile; ``None``: one region."""
    if grid is None or tiles is None:
        return cover(x, keep), None
    ids = _tiled(*grid, *tiles).to(x.device)
    count, each = ids.shape
    rounds = min(-(-keep // count), each)
    chosen = cover(x[:, ids].flatten(0, 1), rounds).view(x.size(0), count, rounds)
    chosen = ids.expand(x.size(0), -1, -1).gather(2, chosen).flatten(1)
    return chosen.index_select(1, _places(count, keep, each).to(x.device)), ids


def _toma(
    x: Tensor, keep: int | list[int], scale: float, grid: Grid | None, tiles: Grid | None, mask: Tensor | None
) -> Assignment | SoftAssignment:
    budget = clamp_budget(keep, x, mask)
    if x.size(0) == 0 or (isinstance(budget, int) and budget >= x.size(1)):
        return all_single(x, budget, mask)
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(budget, list) or grid is None:
            with torch.no_grad():
                centers = cover(x, max(budget, default=0) if isinstance(budget, list) else budget, mask)
            return to_centers(x, centers, budget, scale, mask)
        with torch.no_grad():
            centers, ids = _choose(x, budget, grid, tiles)
        assert ids is not None
        return _in_tiles(x, budget, scale, centers, ids)


def _in_tiles(x: Tensor, keep: int, scale: float, centers: Tensor, ids: Tensor) -> Assignment | SoftAssignment:
    images, tokens, (count, each), device = x.size(0), x.size(1), ids.shape, x.device
    rounds = min(-(-keep // count), each)
    place = _places(count, keep, each).to(device)
    column = torch.full((count * rounds,), -1, device=device).scatter(0, place, torch.arange(keep, device=device))
    column = column.view(count, rounds)
    to = centers[:, column.clamp_min(0)]  # [B, tiles, rounds]
    logits = cosines(x[:, ids].flatten(0, 1), None, take_rows(x, to.flatten(1)).view(-1, rounds, x.size(2)))
    logits = logits.view(images, count, each, rounds).masked_fill(column[:, None] < 0, -torch.inf)
    if scale == torch.inf:
        own = ids[None, ..., None] == to[:, :, None]
        best = torch.where(own, 2.0, logits).argmax(dim=3)
        cluster = column.expand(images, -1, -1).gather(2, best).flatten(1)
        return Assignment.from_dense(
            cluster.new_empty(images, tokens).index_copy_(1, ids.flatten(), cluster), keep, centers=centers
        )
    weight = (
        drop_faint((scale * logits).softmax(dim=3))
        if scale
        else torch.where(column[:, None] < 0, 0.0, 1.0) / (column >= 0).sum(dim=1)[:, None, None]
    )
    ptr, ends = equal_ptr(images, tokens, device), equal_ptr(images, keep, device)
    token = (ids + ptr[:-1, None, None])[..., None].expand(-1, -1, -1, rounds)
    cluster = (column + ends[:-1, None, None])[:, :, None].expand(-1, -1, each, -1)
    weight = weight.expand(images, -1, -1, -1)
    parts = (token, cluster, weight)
    if count * rounds != keep:
        parts = tuple(t.transpose(2, 3).flatten(1, 2).index_select(1, place) for t in parts)
    edges = parts[0].flatten(), parts[1].flatten(), parts[2].flatten()
    flat = (centers + ptr[:-1, None]).flatten()
    return SoftAssignment(
        edges[0],
        edges[1],
        edges[2],
        images * tokens,
        images * keep,
        True,
        edges,
        ptr,
        ends,
        centers=flat,
        lossless=True,
    )
