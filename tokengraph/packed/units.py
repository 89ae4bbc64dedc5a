"""The units of a packed batch: squares of patches, in the order in which the tower runs them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.edges.grid import grid_positions
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.rounds import choose, reduce_rows, representatives
from tokengraph.select.tokens import Tokens

Map = Assignment | SoftAssignment


@dataclass(frozen=True)
class Step:
    """One reduction of some frames' units, with rows and clusters numbered among all units before and after it."""

    rows: Tensor
    map: Map
    place: Tensor


@dataclass(frozen=True)
class Units:
    """The units of a batch at one place in the tower.

    Args:
        frames: ``(h, w)`` in units of each frame.
        raster: For each unit at the input, in the tower's order, its number among all units row by row, ``[U]``.
        stands: For each current unit the input unit whose place it has, in the tower's order, ``[u]`` rising.
        steps: The reductions so far: for each, parts that together map all units.
        sizes: Input units that each stands for, ``[u]`` float32.
    """

    frames: tuple[tuple[int, int], ...]
    raster: Tensor
    stands: Tensor
    sizes: Tensor
    steps: tuple[tuple[Step, ...], ...] = ()
    counts_before: tuple[int, ...] = ()

    @classmethod
    def whole(cls, frames: list[tuple[int, int]], raster: Tensor) -> Units:
        """All units of a batch."""
        own = torch.arange(raster.numel(), device=raster.device)
        return cls(tuple(frames), raster, own, torch.ones(raster.numel(), device=raster.device))

    @property
    def coarse(self) -> bool:
        """True if anything has been reduced."""
        return len(self.steps) > 0

    def owners(self) -> Tensor:
        """The frame of each current unit, ``[u]``."""
        sizes = torch.tensor([h * w for h, w in self.frames], device=self.raster.device)
        return torch.bucketize(self.stands, sizes.cumsum(0), right=True)

    def segments(self, ends: Tensor) -> Tensor:
        """Ends of attention segments, given in input units ``[S+1]``, among the current units; empty ones go."""
        return torch.searchsorted(self.stands, ends.to(self.stands)).to(ends.dtype).unique_consecutive()

    def reduced(self, x: Tensor, budgets: list[int], select: Select, keys: Tensor | None) -> tuple[Tensor, Units]:
        """Reduces each frame to its budget.

        Args:
            x: Rows of the units, ``[u, m*m, C]``.
            budgets: Units that each frame keeps.
            select: The strategy.
            keys: Attention keys of the units, ``[u, D]``, for strategies that read them; ``None``: features.

        Returns:
            The rows ``[u', m*m, C]``, and the units that they are.
        """
        owner = self.owners()
        counts = torch.bincount(owner, minlength=len(self.frames)).tolist()
        groups: dict[tuple[int, int, tuple[int, int]], list[int]] = {}
        for frame, key in enumerate(zip(counts, budgets, self.frames, strict=True)):
            groups.setdefault(key, []).append(frame)
        starts = torch.tensor([0, *counts[:-1]], device=x.device).cumsum(0)
        parts, stands, rows, sizes = [], [], [], []
        for (count, budget, grid), frames in groups.items():
            if not count:
                continue
            index = starts[frames][:, None] + torch.arange(count, device=x.device)
            order = self.raster[self.stands[index]].argsort(dim=1)  # strategies see units row by row
            flat = index.gather(1, order).flatten()
            tokens = self._tokens(x, flat, len(frames), grid, keys)
            with torch.no_grad():
                step = choose(select, tokens.x, budget, grid, tokens=tokens)
            made, size = reduce_rows(step, x[flat].flatten(1), select, self.sizes[flat])
            parts.append((flat, step))
            stands.append(flat[representatives(step)])
            rows.append(made.unflatten(1, x.shape[1:]))
            sizes.append(size)
        joined = torch.cat(stands)
        order = joined.argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        pieces = place.split([s.numel() for s in stands])
        steps = tuple(Step(flat, step, piece) for (flat, step), piece in zip(parts, pieces, strict=True))
        after = replace(
            self,
            stands=self.stands[joined[order]],
            sizes=torch.cat(sizes)[order],
            steps=(*self.steps, steps),
            counts_before=(*self.counts_before, self.stands.numel()),
        )
        return torch.cat(rows)[order], after

    def _tokens(self, x: Tensor, flat: Tensor, frames: int, grid: tuple[int, int], keys: Tensor | None) -> Tokens:
        mean = x[flat].detach().mean(dim=1).view(frames, -1, x.size(2))
        attention = None
        if keys is not None:
            own = keys[flat].view(frames, 1, -1, keys.size(1))
            attention = AttentionStats(None, 1.0, 0, keys=lambda: own)
        full = mean.size(1) == grid[0] * grid[1]
        pos = grid_positions(grid, device=x.device)
        first = self.raster[self.stands[flat]].view(frames, -1)
        local = first - self._firsts(flat, frames)
        return Tokens(
            mean, self.sizes[flat].view(frames, -1), grid, full, attention=attention, locate=lambda: pos[local]
        )

    def _firsts(self, flat: Tensor, frames: int) -> Tensor:
        """The number of the first unit of each frame, ``[frames, 1]``."""
        sizes = torch.tensor([h * w for h, w in self.frames], device=flat.device)
        starts = sizes.cumsum(0) - sizes
        return starts[self.owners()[flat.view(frames, -1)[:, :1]]]

    def lift(self, y: Tensor) -> Tensor:
        """Expands rows of the current units, ``[u, ...]``, to all units at the input, in the tower's order."""
        for steps, count in zip(reversed(self.steps), reversed(self.counts_before), strict=True):
            flat = y.flatten(1)
            out = flat.new_zeros(count, flat.size(1))
            for step in steps:
                out[step.rows] = step.map.lift(flat[step.place])
            y = out.unflatten(1, y.shape[1:])
        return y
