"""The tokens between two blocks of a model: how many, how heavy, where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.edges.grid import grid_positions
from tokengraph.flat.layout import spread
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment


@dataclass
class State:
    """The tokens between two blocks.

    Args:
        images: B.
        patches: Patch tokens an image at the input.
        count: Patch tokens an image now; the most of any, where images differ.
        grid: ``(H, W)`` of the input patches.
        size: Weight of each token, ``[B*(P+count)]`` float32, prefix tokens 1; ``None``: all ones. Where the strategy
            merges it is the number of input patches that the token stands for.
        maps: The maps from the input patches to the tokens of now, one after another; none: nothing changed. Hard ones
            are composed as they come, weighted ones only when somebody asks.
        residues: What each map's way back adds, ``[M, C]`` rows of the tokens before it, or ``None``: nothing.
        patch: Input patch that each token descends from, ``[B, count]``; ``None``: unknown, or its own place.
        memory: What the strategy's ``begin`` made of the input.
        counts: Patch tokens of each image, where they differ; the sequences are then padded. ``None``: all ``count``.
        valid: ``[B, count]`` bool, True where there is a token; with ``counts``.
        decisions: Cumulative keep masks ``[B, count]`` of a strategy in training, stage by stage.
        keep_mask: The last of them as an attention mask over the whole sequence.
        grids: ``(H, W)`` of each image's own input patches, where the model takes images of any shape; ``None``: all
            have ``grid``.
        plans: Patch tokens of each image after each number of blocks, where images differ.
        present: ``[B, patches]`` bool, True where the input has a patch, where the model itself takes padded images;
            ``None``: everywhere. The maps are then over the True ones.
    """

    images: int
    patches: int
    count: int
    grid: tuple[int, int]
    size: Tensor | None = None
    maps: tuple[Assignment | SoftAssignment, ...] = ()
    residues: tuple[Tensor | None, ...] = field(default=(), repr=False)
    patch: Tensor | None = None
    memory: Any = field(default=None, repr=False)
    counts: tuple[int, ...] | None = None
    valid: Tensor | None = field(default=None, repr=False)
    decisions: tuple[Tensor, ...] = ()
    keep_mask: KeepMask | None = field(default=None, repr=False)
    grids: tuple[tuple[int, int], ...] | None = None
    plans: tuple[list[int], ...] | None = field(default=None, repr=False)
    present: Tensor | None = field(default=None, repr=False)

    @property
    def one_grid(self) -> tuple[int, int] | None:
        """``(H, W)`` of the input patches of every image; ``None``: images differ, or are padded."""
        if self.grids is None:
            return self.grid
        return self.grids[0] if self.present is None and len(set(self.grids)) == 1 else None

    @property
    def full_counts(self) -> tuple[int, ...] | None:
        """Input patches of each image, where images are padded; ``None``: all have ``patches``."""
        return None if self.present is None else tuple(h * w for h, w in self.grids or ())

    def at_input(self) -> State:
        """The tokens as they came, before anything was coarsened."""
        return State(
            self.images,
            self.patches,
            self.patches,
            self.grid,
            memory=self.memory,
            counts=self.full_counts,
            valid=self.present,
            grids=self.grids,
            plans=self.plans,
            present=self.present,
        )

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
        """The one map from the input patches to the tokens of now; ``None``: nothing changed."""
        if not self.coarse:
            return None
        source = self.maps[0]
        for later in self.maps[1:]:
            source = source.then(later)
        return source

    def step(
        self,
        assignment: Assignment | SoftAssignment,
        count: int,
        size: Tensor | None,
        valid: Tensor | None = None,
        residue: Tensor | None = None,
    ) -> State:
        """The state after one more coarsening."""
        maps, residues = (*self.maps, assignment), (*self.residues, residue)
        hard = isinstance(assignment, Assignment) and self.coarse and isinstance(self.maps[-1], Assignment)
        if hard and residue is None and self.residues[-1] is None:
            maps, residues = (*self.maps[:-1], self.maps[-1].then(assignment)), self.residues
        after = replace(
            self,
            count=count,
            size=size,
            maps=maps,
            residues=residues,
            patch=None,
            counts=assignment.counts,
            valid=valid,
        )
        if assignment.centers is not None and (self.patch is not None or not self.coarse):
            local = torch.arange(self.patches, device=assignment.centers.device).expand(self.images, -1)
            before = local if self.patch is None else self.patch
            after.patch = after.padded(self.flat(before).index_select(0, assignment.centers))
        return after

    def flat(self, rows: Tensor) -> Tensor:
        """Rows ``[B, count, ...]`` as flat tokens, without padding."""
        return rows.flatten(0, 1) if self.valid is None else rows[self.valid]

    def padded(self, rows: Tensor) -> Tensor:
        """Flat tokens ``[M, ...]`` as rows ``[B, count, ...]``, zeros at padding: the inverse of :meth:`flat`."""
        return rows.unflatten(0, (self.images, self.count)) if self.valid is None else spread(rows, self.valid)

    def averaged(self, rows: Tensor) -> Tensor:
        """Rows ``[M, ...]`` of the input patches, averaged over the patches in each token: ``[B, count, ...]``."""
        size = None
        for step in self.maps:
            rows, size = step.by_size().reduce(rows, size)
        return self.padded(rows)

    def locate(self, device: torch.device) -> Tensor:
        """Centroids of the tokens in patch units, ``[B, count, 2]``."""
        if self.grids is None:
            pos = grid_positions(self.grid, device=device).expand(self.images, -1, -1)
            if not self.coarse:
                return pos
            return self.averaged(pos.flatten(0, 1))
        return self.averaged(torch.cat([grid_positions(grid, device=device) for grid in self.grids]))

    def unweighed(self, device: torch.device | None) -> Tensor:
        """Input patches that each token stands for, ``[B, count]``, where nobody weighs by them; ones after drops."""
        if not self.merged:
            ones = torch.ones(self.images, self.count, dtype=torch.float32, device=device)
            return ones if self.valid is None else self.valid.float()
        size = torch.ones(self.maps[0].num_tokens, dtype=torch.float32, device=device)
        for step in self.maps:
            size = step.by_size().reduce(size[:, None], size)[1]
        return self.padded(size)

    def decided(self, decision: KeepMask, num_prefix: int) -> State:
        """The state after one more keep decision over ``[B, count]``: nothing is taken out."""
        keep = decision.keep
        whole = torch.cat([keep.new_ones(self.images, num_prefix), keep], dim=1)
        mask = KeepMask(whole, official=decision.official, cap=decision.cap)
        return replace(self, decisions=(*self.decisions, keep), keep_mask=mask)

    def restored(self) -> State:
        """The state after reconstruction: every input patch is there again."""
        start = self.at_input()
        return replace(start, decisions=self.decisions, keep_mask=self.keep_mask)

    def lift(self, rows: Tensor, fill: Tensor | None = None, *, replenish: bool = False) -> Tensor:
        """Rows ``[B, count, C]`` of the tokens of now as rows ``[B*patches, C]`` of the input patches; padding: zeros.

        With ``replenish``, features also get back what the strategy stored when tokens left.
        """
        if self.present is None:
            return self._lift(self.flat(rows), fill, replenish)
        fill = None if fill is None else fill[self.present.flatten()]
        return spread(self._lift(self.flat(rows), fill, replenish), self.present).flatten(0, 1)

    def _lift(self, rows: Tensor, fill: Tensor | None, replenish: bool) -> Tensor:
        if len(self.maps) == 1 and not replenish:
            return self.maps[0].lift(rows, fill)
        reached = None if fill is None else torch.ones_like(rows[:, :1], dtype=torch.float32)
        for step, residue in zip(reversed(self.maps), reversed(self.residues), strict=True):
            rows = step.lift(rows)
            rows = rows + residue.to(rows.dtype) if replenish and residue is not None else rows
            reached = None if reached is None else step.lift(reached)
        return rows if fill is None or reached is None else torch.where(reached > 0, rows, fill.to(rows.dtype))
