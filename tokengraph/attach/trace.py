"""The user's record of the last run: token counts, sizes and maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokengraph.attach.lifting import Lifting
from tokengraph.attach.run import Run
from tokengraph.attach.state import State
from tokengraph.errors import check_layer
from tokengraph.maps.hard import Assignment
from tokengraph.maps.lineage import Lineage
from tokengraph.maps.soft import SoftAssignment
from tokengraph.schedule import counts_ahead


@dataclass(eq=False, repr=False)
class Trace(Lifting):
    """The record of one model's last run. Layer l describes the tokens after l blocks.

    Args:
        run: The record that blocks write. Copies of the model and pickles start with an empty one.
    """

    run: Run

    def __repr__(self) -> str:
        try:
            counts = f"counts={self.counts}"
        except RuntimeError:  # the last run did not come to its end
            counts = f"plan={self.plan}, stopped=True"
        return f"Trace({counts if self.run.begun else f'plan={self.plan}'})"

    @property
    def num_prefix(self) -> int:
        """P, the prefix tokens in front of the sequence."""
        return self.run.num_prefix

    @property
    def depth(self) -> int:
        """Blocks in the model."""
        return self.run.depth

    @property
    def patches(self) -> int:
        """N, patch tokens an image at the input, for the model's own image size."""
        return self.run.plans.patches

    @property
    def plan(self) -> list[int]:
        """Patch tokens planned after each number of blocks, for the model's own image size."""
        return self.run.plans.plan

    @property
    def grid(self) -> tuple[int, ...]:
        """``(H, W)`` or ``(T, H, W)`` of the input patches of the last run; before one, for the model's own size."""
        assert self.run.shape.grid is not None
        return self.run.shape.grid

    @property
    def grids(self) -> tuple[tuple[int, int], ...] | None:
        """``(H, W)`` of each image if they differ or are padded; ``None`` if all have ``grid``."""
        return self.run.shape.grids

    @property
    def present(self) -> Tensor | None:
        """``[B, N]`` bool, True where the last run's input has a patch; ``None`` if everywhere."""
        return self.run.shape.present

    @property
    def output(self) -> Tensor | None:
        """The last block's output ``[B, P+n, C]`` in the last run, without gradient; ``None`` before one."""
        return self.run.output

    @property
    def counts(self) -> list[int]:
        """Patch tokens an image before the first block and after each block, in the last run; before one, the plan.

        If images differ, this is the largest count; :meth:`counts_per_image` has each.

        Raises:
            RuntimeError: If the last run failed or stopped before the last block; the message says where.
        """
        if not self.run.begun:
            plan, ahead = list(self.plan), self.run.plans.request.select.placement == "ahead"
            return counts_ahead(plan, self.patches) if ahead else plan
        self.state()  # raises if the run stopped early
        return [max(self.counts_per_image(layer), default=0) for layer in range(self.depth + 1)]

    @property
    def counts_inside(self) -> list[int]:
        """Patch tokens an image inside each block, if the strategy acts around a module; before a run, the plan.

        Otherwise the tokens that come to each block. If images differ, this is the largest count.
        """
        if not self.run.begun:
            return list(self.run.plans.inner) or self.counts[:-1]
        counts = self.counts
        return [max(s.lineage.now.each, default=0) if s else counts[i] for i, s in enumerate(self.run.inner)]

    def worked_per_image(self, layer: int) -> list[int]:
        """Returns each image's patch tokens that block ``layer - 1`` worked on, from which costs follow.

        For strategies around a module these are the tokens inside it; for others, and for layer 0, as
        :meth:`counts_per_image`.
        """
        inner = self.run.inner[layer - 1] if layer else None
        return self.counts_per_image(layer) if inner is None else list(inner.lineage.now.each)

    @property
    def counts_worked(self) -> list[int]:
        """:attr:`counts`; for strategies around a module, behind the first entry, :attr:`counts_inside`."""
        counts = self.counts
        around = self.run.plans.request.select.placement == "around"
        return [counts[0], *self.counts_inside] if around else counts

    def inside(self, index: int) -> Assignment | SoftAssignment:
        """Returns the map by which block ``index`` ran around fewer tokens in the last run.

        Raises:
            ValueError: If it did not.
        """
        state = self.run.inner[index] if 0 <= index < self.depth else None
        if state is None:
            raise ValueError(f"Expected a block that ran around fewer tokens in the last run (got block {index}).")
        return state.lineage.maps[-1]

    def state(self, layer: int | None = None) -> State:
        """Returns the state of the tokens after ``layer`` blocks (default: all) in the last run.

        Raises:
            RuntimeError: Before the first run, or if the last one stopped before that layer.
            ValueError: For a layer outside ``[0, depth]``.
            TypeError: For a layer that is no int.
        """
        layer = self.depth if layer is None else layer
        check_layer(layer)
        if not 0 <= layer <= self.depth:
            raise ValueError(f"Expected a layer in [0, {self.depth}] (got {layer}).")
        if layer >= self.run.start and (state := self.run.at(layer)) is not None:
            return state
        first = self.run.at(self.run.start)
        if first is None or layer > self.run.start:
            reached = max((i for i, state in enumerate(self.run.slots) if state is not None), default=0)
            got = f"one that ended after layer {reached}" if self.run.begun else "none"
            raise RuntimeError(
                f"Expected a run of the model up to layer {layer} before its trace is read (got {got}). "
                "Call the model first, to its end."
            )
        return first.at_start()

    def lineage(self, layer: int | None = None) -> Lineage:
        """Returns the lineage of the tokens after ``layer`` blocks (default: all); raises as :meth:`state` does."""
        return self.state(layer).lineage

    def counts_per_image(self, layer: int | None = None) -> list[int]:
        """Returns each image's number of patch tokens after ``layer`` blocks (default: all)."""
        return list(self.lineage(layer).now.each)

    def valid(self, layer: int | None = None) -> Tensor:
        """Returns the mask of tokens after ``layer`` blocks, ``[B, n]`` bool; False marks padding of shorter images."""
        now = self.lineage(layer).now
        if now.valid is not None:
            return now.valid
        return torch.ones(now.images, now.width, dtype=torch.bool, device=self.run.device)

    @property
    def decisions(self) -> list[Tensor]:
        """Keep masks ``[B, N]`` with gradients, one for each stage of a strategy in training.

        They are cumulative, but for strategies around blocks, whose tokens come back and may be chosen again.
        """
        return list(self.state().decisions)

    @property
    def shares(self) -> list[Tensor]:
        """Weights ``[B, n]`` of tokens in a mean while the strategy trains: decisions, or sizes of relaxed steps."""
        state = self.state()
        if state.relaxed is not None and state.size is not None:
            return [state.size[:, self.num_prefix :]]
        return list(state.decisions) if state.keep_mask is not None else []

    @property
    def seen(self) -> Any:
        """The strategy's memory after the last block, by its ``observe``; ``None`` for strategies without one."""
        return self.state().seen

    def source(self, layer: int | None = None) -> Assignment | SoftAssignment:
        """Returns the map from the ``B*N`` input patches to the tokens after ``layer`` blocks (default: all)."""
        if (source := self.lineage(layer).source) is not None:
            return source
        counts, device = self.counts_per_image(0), self.run.device
        return Assignment.identity(sum(counts), ptr=torch.tensor([0, *counts], device=device).cumsum(0), device=device)

    def size(self, layer: int | None = None) -> Tensor:
        """Returns the weight of each token after ``layer`` blocks (default: all), ``[B, n]`` float32.

        For strategies that merge or cluster this is the number of input patches that the token stands for, for GTP its
        token scale, and 1 for strategies that only drop tokens.
        """
        state = self.state(layer)
        if state.size is None:
            return state.lineage.sizes(self.run.device)
        return state.size[:, self.num_prefix :]
