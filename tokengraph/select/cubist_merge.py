"""CubistMerge: rows, then columns of the grid get shorter by as much each, so that a smaller grid is left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokengraph.cost import Cost
from tokengraph.errors import check_finite, check_grid, check_tokens
from tokengraph.flat.layout import take_rows
from tokengraph.kinds import explains
from tokengraph.maps.hard import Assignment
from tokengraph.select.base import Select
from tokengraph.select.parts.choices.lines import shorten
from tokengraph.select.parts.choices.roots import all_single
from tokengraph.select.tokens import Tokens, clamp_budget

REDUCE = ("absmax", "mean")
Grid = tuple[int, int]


@explains
def cubist_merge(
    x: Tensor, grid: Grid, coarse: Grid, *, size: Tensor | None = None, reduce: str = "absmax"
) -> Assignment:
    r"""Merges neighbours on the grid so that a smaller grid is left.

    In each row every token at an odd place takes the better of its two neighbours by cosine, and the ``W - w`` best of
    each row merge; the clusters are reduced; then the same happens down the columns, with ``H - h``.

    Args:
        x: Tokens of the full grid, ``[B, N, C]``.
        grid: ``(H, W)``.
        coarse: The grid ``(h, w)`` that is left, at least ``(ceil(H / 2), ceil(W / 2))``.
        size: Input patches each token stands for, ``[B, N]``; for ``reduce="mean"``.
        reduce: What clusters are between rows and columns, and what their rows should be reduced by: ``"absmax"``, per
            channel the value that is larger in magnitude, or ``"mean"``.

    Returns:
        The map over ``B*N`` tokens; clusters lie on the grid ``coarse``, row by row, in the order of their tokens.

    Raises:
        ValueError: If the grids do not fit, ``reduce`` is unknown, or tokens are not finite.

    Cost: ``O(B N C)``, a sort of each row and column; no host synchronisation.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 1.0], [0.1, 0.9], [1.0, 0.0]]])
        >>> cubist_merge(x, (2, 3), (2, 2)).cluster.tolist()
        [0, 0, 1, 2, 2, 3]

    Source: after *CubistMerge*, 2025: this definition is **our own** reading of it; no vectors exist.
    """
    check_tokens(x)
    grid = check_grid(grid, x.size(1))
    check_finite(x)
    _check_reduce(reduce)
    least = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    if len(coarse) != 2 or any(not a <= c <= b for a, c, b in zip(least, coarse, grid, strict=True)):
        raise ValueError(
            f"Expected a coarse grid from {least[0]} x {least[1]} to {grid[0]} x {grid[1]} (got "
            f"{' x '.join(map(str, coarse))}). One step merges half of each row and column at most."
        )
    return _cubist(x, grid, (int(coarse[0]), int(coarse[1])), size, reduce)


@dataclass(frozen=True)
class CubistMerge(Select):
    """CubistMerge as a strategy, between attention and MLP, on the tokens; see :func:`cubist_merge`.

    Score: cosine. Graph: neighbours in a row, then in a column. Choice: the best odd tokens of each line. Reduction:
    per channel the value of larger magnitude. ``K = h * w`` tokens are left, the largest grid within the budget, as
    near to the shape of the patch grid as may be; they lie row by row.

    Args:
        reduce: ``"absmax"``, or ``"mean"``: by size.
        coarse: ``(h, w)``: this grid for every budget; the schedule then says ``"cluster"``.
    """

    name: ClassVar[str] = "cubist-merge"
    needs_grid: ClassVar[bool] = True
    reads: ClassVar[str] = "nothing"
    reduce: str = "absmax"
    coarse: Grid | None = None

    def __post_init__(self) -> None:
        _check_reduce(self.reduce)

    def reduction_at(self, layer: int) -> str:
        """See :meth:`tokengraph.Select.reduction_at`."""
        return self.reduce

    @property
    def own_budget(self) -> int | None:
        """Tokens of the grid that it is set to leave."""
        return None if self.coarse is None else self.coarse[0] * self.coarse[1]

    def __call__(self, tokens: Tokens, budget: int | list[int]) -> Assignment:
        """Maps the tokens to clusters; see :class:`tokengraph.Select`."""
        if tokens.grid is None or not tokens.full or len(tokens.grid) != 2:
            raise ValueError(
                f"Expected the full grid (H, W) for CubistMerge (got {tokens.x.size(1)} tokens"
                f"{'' if tokens.grid is None else f' of a grid {tokens.grid}'}). It acts once, before anything else "
                "removes tokens."
            )
        keep = clamp_budget(budget, tokens.x, None)
        if isinstance(keep, list):
            raise ValueError(f"Expected one budget for all images of a batch (got {keep}). Go image by image.")
        height, width = tokens.grid
        if keep >= height * width:
            return all_single(tokens.x, height * width, None)
        coarse = self.coarse or coarse_grid((height, width), keep)
        return _cubist(tokens.x, (height, width), coarse, tokens.size, self.reduce)

    def makes(self, keep: int, num_tokens: int, grid: Grid | None = None) -> int:
        """Tokens of the largest grid within ``keep`` that one step can leave; without a grid: as if it were square."""
        if keep >= num_tokens:
            return num_tokens
        if self.own_budget is not None:
            return self.own_budget
        side = math.isqrt(num_tokens)
        if grid is None and side * side != num_tokens:
            return keep
        return math.prod(coarse_grid(grid or (side, side), keep))

    def fewest(self, num_tokens: int) -> int:
        """A step leaves half of each row and column: at least ``ceil(N / 4)``, more where sides are odd."""
        side = math.isqrt(num_tokens)
        return ((side + 1) // 2) ** 2 if side * side == num_tokens else (num_tokens + 3) // 4

    def cost(self, num_tokens: int, keep: int, channels: int, head_width: int = 64) -> Cost:
        """Norms and two cosines for every other token, twice."""
        return Cost(8 * num_tokens * channels, 16 * num_tokens * channels)


def coarse_grid(grid: Grid, keep: int) -> Grid:
    """The largest grid of ``keep`` tokens or fewer that one step can leave, as near to the shape of ``grid`` as may be.

    Where none is that small, the smallest.

    Example:
        >>> coarse_grid((14, 14), 98), coarse_grid((6, 8), 30), coarse_grid((14, 14), 5)
        ((9, 10), (5, 6), (7, 7))
    """
    height, width = grid
    ideal = math.sqrt(keep * height / max(width, 1))
    rows = {min(max(h, (height + 1) // 2), height) for h in (math.floor(ideal), math.ceil(ideal))}
    made = [(h, min(max(keep // h, (width + 1) // 2), width)) for h in sorted(rows)]
    fits = [c for c in made if c[0] * c[1] <= keep]
    if not fits:  # one side is as short as it may be: shorten the other
        w = (width + 1) // 2
        fits = [(min(max(keep // w, (height + 1) // 2), height), w)]
    return max(fits, key=lambda c: (c[0] * c[1], -abs(math.log(c[0] * width / (c[1] * height)))))


def _check_reduce(reduce: str) -> None:
    if reduce not in REDUCE:
        raise ValueError(f"Expected reduce to be 'absmax' or 'mean' (got {reduce!r}).")


def _cubist(x: Tensor, grid: Grid, coarse: Grid, size: Tensor | None, reduce: str) -> Assignment:
    (height, width), (h, w), images = grid, coarse, x.size(0)
    if images == 0 or x.size(1) == 0:
        return all_single(x, h * w if x.size(1) else 0, None)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        column = shorten(x.detach().unflatten(1, grid), width - w)  # [B, H, W]
        row = torch.arange(height, device=x.device)[:, None]
        rows = Assignment.from_dense((row * w + column).flatten(1), height * w)
        if height == h:
            return rows
        weight = None if size is None else size.flatten()
        short, _ = rows.reduce(x.detach().flatten(0, 1).float(), weight, reduce=reduce)
        short = short.view(images, height, w, -1).transpose(1, 2)
        down = shorten(short, height - h).transpose(1, 2).flatten(1)  # [B, H * w]
        cluster = down * w + torch.arange(w, device=x.device).repeat(height)
        first = (row * w + column).flatten(1)
        return Assignment.from_dense(take_rows(cluster[..., None], first)[..., 0], h * w)
