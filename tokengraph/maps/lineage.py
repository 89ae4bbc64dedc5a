"""The lineage of a batch's tokens: the maps from the input patches, and the layout. Model families see only this."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokengraph.flat.layout import Layout, spread
from tokengraph.flat.tables import counting
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


@dataclass(eq=False)
class Lineage:
    """The layout of a batch's tokens, and the maps from the input patches to them.

    Args:
        start: Layout of the input patches. If the model takes padded images, ``start.valid`` marks the real patches,
            and the maps are over these.
        now: Layout of the current tokens.
        maps: The maps from the input patches to the current tokens, one after another; empty if nothing changed. Hard
            maps are composed at once, weighted ones on first use.
        residues: For each map, rows ``[M, C]`` that lifting adds to the tokens before it; ``None`` adds nothing.
        ancestor: Input patch that each token descends from, ``[B, n]``; ``None`` if unknown, or if token i is patch i.
        spared: True for images that no step has acted on yet, where others are coarsened; ``None``: all are alike.
    """

    start: Layout
    now: Layout
    maps: tuple[Assignment | SoftAssignment, ...] = ()
    residues: tuple[Tensor | None, ...] = field(default=(), repr=False)
    ancestor: Tensor | None = None
    spared: tuple[bool, ...] | None = None

    @property
    def coarse(self) -> bool:
        """True if the tokens were coarsened."""
        return len(self.maps) > 0

    @property
    def merged(self) -> bool:
        """True if tokens were merged and none dropped, so that every input patch has its cluster's features."""
        return self.coarse and not any(step.lossy for step in self.maps)

    @property
    def untouched(self) -> tuple[bool, ...]:
        """True for each image whose tokens are still its input patches, because no step has acted on it."""
        return self.spared or (not self.coarse,) * self.start.images

    @property
    def source(self) -> Assignment | SoftAssignment | None:
        """The composed map from the input patches to the current tokens; ``None`` if nothing changed."""
        if not self.coarse:
            return None
        source = self.maps[0]
        for later in self.maps[1:]:
            source = source.then(later)
        return source

    def at_start(self) -> Lineage:
        """Returns the lineage of the input patches themselves."""
        return Lineage(self.start, self.start)

    def step(
        self,
        assignment: Assignment | SoftAssignment,
        after: Layout,
        residue: Tensor | None = None,
        spared: tuple[bool, ...] | None = None,
    ) -> Lineage:
        """Returns the lineage after one more coarsening.

        Args:
            assignment: The map from the current tokens to the next.
            after: Layout of the next tokens.
            residue: Rows ``[M, C]`` that lifting over the map adds; ``None`` adds nothing.
            spared: True for images that this step leaves as they are; ``None``: for none.
        """
        if spared is not None and self.coarse:
            spared = None if self.spared is None else tuple(a and b for a, b in zip(spared, self.spared, strict=True))
        spared = spared if spared is not None and any(spared) else None
        maps, residues = (*self.maps, assignment), (*self.residues, residue)
        hard = isinstance(assignment, Assignment) and self.coarse and isinstance(self.maps[-1], Assignment)
        if hard and residue is None and self.residues[-1] is None:
            maps, residues = (*self.maps[:-1], self.maps[-1].then(assignment)), self.residues
        ancestor = None
        if assignment.centers is not None and (self.ancestor is not None or not self.coarse):
            before = self.ancestor
            if before is None:
                before = counting(self.start.width, assignment.centers.device).expand(self.start.images, -1)
            ancestor = after.padded(self.now.flat(before).index_select(0, assignment.centers))
        return Lineage(self.start, after, maps, residues, ancestor, spared)

    def averaged(self, rows: Tensor) -> Tensor:
        """Averages rows ``[M, ...]`` of the input patches over the patches in each token: ``[B, n, ...]``."""
        size = None
        for step in self.maps:
            rows, size = step.by_size().reduce(rows, size)
        return self.now.padded(rows)

    def sizes(self, device: torch.device | None) -> Tensor:
        """Counts the input patches in each token, ``[B, n]``, for states without sizes; 1 after drops."""
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
            rows: Rows of the current tokens.
            fill: Rows ``[B*N, C]`` for dropped tokens; zeros by default.
            replenish: Restores dropped tokens from the features that the strategy stored.

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
