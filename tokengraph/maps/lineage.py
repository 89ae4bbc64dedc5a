"""Where the tokens between two blocks of a model come from, and how they lie: all that a model family sees of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokengraph.flat.layout import Layout, spread
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


@dataclass(eq=False)
class Lineage:
    """The tokens of a batch, and the maps that they came by from the input patches.

    Args:
        start: How the input patches lie. Where the model itself takes padded images, its ``valid`` says which patches
            there are, and the maps are over these.
        now: How the tokens lie now.
        maps: The maps from the input patches to the current tokens, one after another; none: nothing changed. Hard
            ones are composed as they come, weighted ones only when somebody asks.
        residues: What each map's way back adds, ``[M, C]`` rows of the tokens before it, or ``None``: nothing.
        ancestor: Input patch that each token descends from, ``[B, n]``; ``None``: unknown, or its own place.
    """

    start: Layout
    now: Layout
    maps: tuple[Assignment | SoftAssignment, ...] = ()
    residues: tuple[Tensor | None, ...] = field(default=(), repr=False)
    ancestor: Tensor | None = None

    @property
    def coarse(self) -> bool:
        """Whether anything was coarsened."""
        return len(self.maps) > 0

    @property
    def merged(self) -> bool:
        """Whether tokens were merged and none dropped: every input patch then has its cluster's features."""
        return self.coarse and not any(step.lossy for step in self.maps)

    @property
    def source(self) -> Assignment | SoftAssignment | None:
        """The one map from the input patches to the current tokens; ``None``: nothing changed."""
        if not self.coarse:
            return None
        source = self.maps[0]
        for later in self.maps[1:]:
            source = source.then(later)
        return source

    def at_start(self) -> Lineage:
        """The input patches themselves."""
        return Lineage(self.start, self.start)

    def step(self, assignment: Assignment | SoftAssignment, after: Layout, residue: Tensor | None = None) -> Lineage:
        """The lineage after one more coarsening.

        Args:
            assignment: The map from the current tokens to the next.
            after: How the next ones lie.
            residue: What the way back over the map adds, ``[M, C]``.
        """
        maps, residues = (*self.maps, assignment), (*self.residues, residue)
        hard = isinstance(assignment, Assignment) and self.coarse and isinstance(self.maps[-1], Assignment)
        if hard and residue is None and self.residues[-1] is None:
            maps, residues = (*self.maps[:-1], self.maps[-1].then(assignment)), self.residues
        ancestor = None
        if assignment.centers is not None and (self.ancestor is not None or not self.coarse):
            before = self.ancestor
            if before is None:
                before = torch.arange(self.start.width, device=assignment.centers.device).expand(self.start.images, -1)
            ancestor = after.padded(self.now.flat(before).index_select(0, assignment.centers))
        return Lineage(self.start, after, maps, residues, ancestor)

    def averaged(self, rows: Tensor) -> Tensor:
        """Rows ``[M, ...]`` of the input patches, averaged over the patches in each token: ``[B, n, ...]``."""
        size = None
        for step in self.maps:
            rows, size = step.by_size().reduce(rows, size)
        return self.now.padded(rows)

    def sizes(self, device: torch.device | None) -> Tensor:
        """Input patches that each token stands for, ``[B, n]``, where nobody weighs by them; ones after drops."""
        if not self.merged:
            now = self.now
            ones = torch.ones(now.images, now.width, dtype=torch.float32, device=device)
            return ones if now.valid is None else now.valid.float()
        size = torch.ones(self.maps[0].num_tokens, dtype=torch.float32, device=device)
        for step in self.maps:
            size = step.by_size().reduce(size[:, None], size)[1]
        return self.now.padded(size)

    def lift(self, rows: Tensor, fill: Tensor | None = None, *, replenish: bool = False) -> Tensor:
        """Expands rows ``[B, n, C]`` of the current tokens to one row per input patch; padding becomes zeros.

        Args:
            rows: Of the current tokens.
            fill: Rows ``[B*N, C]`` that dropped tokens get; default: zeros.
            replenish: Features also get back what the strategy stored when tokens left.

        Returns:
            ``[B*N, C]``.
        """
        present = self.start.valid
        if present is None:
            return self._lift(self.now.flat(rows), fill, replenish)
        fill = None if fill is None else fill[present.flatten()]
        return spread(self._lift(self.now.flat(rows), fill, replenish), present).flatten(0, 1)

    def _lift(self, rows: Tensor, fill: Tensor | None, replenish: bool) -> Tensor:
        if len(self.maps) == 1 and not replenish:
            return self.maps[0].lift(rows, fill)
        reached = None if fill is None else torch.ones_like(rows[:, :1], dtype=torch.float32)
        for step, residue in zip(reversed(self.maps), reversed(self.residues), strict=True):
            rows = step.lift(rows)
            rows = rows + residue.to(rows.dtype) if replenish and residue is not None else rows
            reached = None if reached is None else step.lift(reached)
        return rows if fill is None or reached is None else torch.where(reached > 0, rows, fill.to(rows.dtype))
