"""What happened to the tokens of the last run: counts and sizes, and which tokens a block is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.base import InputShape
from tokengraph.attach.lifting import Lifting
from tokengraph.attach.recompute import RUNS, Recompute
from tokengraph.attach.record import Record
from tokengraph.attach.state import State
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.nn.modes import in_backward


@dataclass
class Trace(Lifting, Record):
    """The record of one model's last run. Slot l holds the tokens after l blocks; a run overwrites the one before it.

    Gradient checkpointing runs blocks a second time, during backward. By then another run may have overwritten the
    slots, so they are not asked; see :class:`tokengraph.attach.recompute.Recompute`.

    Copies of the model, and what is pickled, start with an empty record.

    Args:
        num_prefix: Prefix tokens in front of the sequence.
        depth: Blocks in the model.
        start: The first slot that is ever written; before it nothing is coarsened.
        patches: Patch tokens an image at the input, for the model's own image size.
        plan: Patch tokens after each number of blocks, for that size.
        grid: ``(H, W)`` of the input patches of the run that is going on.
        grids: The same of each image, where they differ or are padded; ``None``: all have ``grid``.
        present: ``[B, N]`` bool, True where the run's input has a patch; ``None``: everywhere.
        output: Tokens ``[B, P+n, C]`` that left the last block of the last run, without gradient; ``None`` until then.

    Attributes:
        mask: The user's attention mask that was last looked through for padding in this run; ``None``: none yet.
        slots: The tokens after each number of blocks, ``depth + 1`` states; ``None`` where the run has not been.
        recompute: What backward needs of runs that others have overwritten, and what it computes again.
        ordered: Whether the run's patches came in reading order; ViTMAE shuffles them.
        begun: Whether any run has begun.
        alike: Whether all runs had images of one grid.
        device: Where the run's tokens are; ``None`` before one.
        thread: The thread that runs; 0: not known.
        whole: Whether the run was called by a head that needs every patch of the output.
    """

    num_prefix: int
    depth: int
    start: int
    patches: int
    plan: list[int]
    grid: tuple[int, int]
    grids: tuple[tuple[int, int], ...] | None = None
    present: Tensor | None = field(default=None, repr=False)
    output: Tensor | None = field(default=None, repr=False)
    mask: Tensor | None = field(init=False, default=None, repr=False)
    slots: list[State | None] = field(init=False, repr=False)
    recompute: Recompute[State] = field(init=False, repr=False, default_factory=Recompute)
    ordered: bool = field(init=False, default=True, repr=False)
    begun: bool = field(init=False, default=False, repr=False)
    alike: bool = field(init=False, default=True, repr=False)
    device: torch.device | None = field(init=False, default=None, repr=False)
    thread: int = field(init=False, default=0, repr=False)
    whole: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        self.slots = [None] * (self.depth + 1)

    def note(self, look: Callable[[], InputShape]) -> None:
        """Begins a run as its images come in: ``look`` tells their shape."""
        if torch.compiler.is_compiling():  # what is read here would be compiled in
            self._forget()
            return self._take(look())
        before = self.grid, self.grids, self.present
        if not in_backward():
            ran = self.begun
            self._forget()
            self._take(look())
            self.alike = self.alike and (not ran or (self.grids is None and self.grid == before[0]))
            return
        self._take(look())
        self.recompute.note((self.grid, self.grids, self.present))
        self.grid, self.grids, self.present = before

    def _take(self, shape: InputShape) -> None:
        self.grid = self.grid if shape.grid is None else shape.grid
        self.grids, self.present, self.ordered = shape.grids, shape.present, shape.ordered

    def note_caller(self, whole: bool) -> None:
        """Notes whether a head that needs every patch has called the model; what backward runs again says nothing."""
        if not in_backward():
            self.whole = whole

    def begin(self, x: Tensor) -> State:
        """The state of a run's tokens ``x [B, P+N, C]`` as they come to the first attached block.

        Raises:
            ValueError: If there are more patch tokens than the grid has patches.
        """
        grid, grids, present = self.recompute.grids() or (self.grid, self.grids, self.present)
        images, count = x.size(0), x.size(1) - self.num_prefix
        if grids is None and count > grid[0] * grid[1]:
            raise ValueError(
                f"Expected at most {grid[0]} x {grid[1]} patch tokens an image behind {self.num_prefix} prefix tokens "
                f"(got {count}). Give the adapter the grid and the prefix tokens that the model has."
            )
        if not in_backward():
            self._forget()
            self.device = x.device
        return State(images, count, count, grid, grids=grids, present=present).at_input()

    def _forget(self) -> None:
        for layer in range(self.depth + 1):
            self.slots[layer] = None
        self.output, self.mask, self.begun = None, None, True
        self.take_thread()
        if not torch.compiler.is_compiling():
            self.recompute.let_go()

    def enter(self, index: int, x: Tensor) -> State | None:
        """The state of the tokens ``x [B, P+n, C]`` that come to block ``index``; ``None``: a new run begins.

        Raises:
            RuntimeError: If a block runs outside a run of its model, in two threads at once, or during backward for a
                run that is no longer known.
        """
        if torch.compiler.is_compiling():
            return None if index == self.start else self.slots[index]
        if in_backward():
            state = self.recompute.find(index, x)
            if state is None and index == self.start and (self.alike or self.recompute.grids() is not None):
                return None  # a checkpoint around the whole model, say: a run of its own
            if state is None or x.size(1) != self.num_prefix + state.count:
                raise RuntimeError(
                    f"Expected block {index} to be computed again for tokens of a run that is known (got others). At "
                    f"most {RUNS} runs can wait for their backward where blocks are checkpointed one by one, and what "
                    "checkpoints keep must stay in its memory; a hook that gives a block other tokens breaks that."
                )
            return state
        if index == self.start:
            return None
        self.check_thread()
        state = self.slots[index]
        if state is None or x.size(1) != self.num_prefix + state.count:
            raise RuntimeError(
                f"Expected block {index} to run as part of its model (got a call of its own). Call the model."
            )
        return state

    def remember(self, index: int, x: Tensor, state: State) -> None:
        """Keeps the state of tokens that come to block ``index`` and that backward may come back to."""
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or x.requires_grad or in_backward()):
            return
        self.recompute.remember(index, x, state, 2 * RUNS * self.depth)  # backward writes, too

    def write(self, layer: int, state: State) -> None:
        """Notes the tokens after ``layer`` blocks of the run that is going on."""
        if in_backward():
            self.recompute.write(layer, state)
        else:
            self.slots[layer] = state

    def leave(self, index: int, x: Tensor, state: State) -> None:
        """Writes what block ``index`` made, ``x [B, P+n', C]``, into the slot behind it."""
        if in_backward():
            self.recompute.write(index + 1, state)
            self.remember(index + 1, x, state)  # for the next block of one checkpointed segment
            return
        self.check_thread()  # another may have begun while this one was in the block: its record must not be touched
        self.slots[index + 1] = state
        if index + 1 == self.depth:
            self.output = x.detach()

    @property
    def counts(self) -> list[int]:
        """Patch tokens an image before the first block and after each block, in the last run (planned, before one).

        Where images differ, the most of any; :meth:`counts_per_image` has each.

        Raises:
            RuntimeError: If the last run failed or stopped before the last block; the message says where.
        """
        if not self.begun:
            return list(self.plan)
        self.state()  # says so when it did not come to its end
        return [max(self.counts_per_image(layer), default=0) for layer in range(self.depth + 1)]

    def state(self, layer: int | None = None) -> State:
        """The tokens after ``layer`` blocks (default: all) in the last run.

        Raises:
            RuntimeError: Before the first run, or if the last one stopped before that layer.
            ValueError: For a layer outside ``[0, depth]``.
        """
        layer = self.depth if layer is None else layer
        if not 0 <= layer <= self.depth:
            raise ValueError(f"Expected a layer in [0, {self.depth}] (got {layer}).")
        if layer >= self.start and (state := self._at(layer)) is not None:
            return state
        first = self._at(self.start)
        if first is None or layer > self.start:
            reached = max((i for i, state in enumerate(self.slots) if state is not None), default=0)
            got = f"one that ended behind layer {reached}" if self.begun else "none"
            raise RuntimeError(
                f"Expected a run of the model up to layer {layer} before its trace is read (got {got}). "
                "Call the model first, to its end."
            )
        return first.at_input()

    def _at(self, layer: int) -> State | None:
        return self.recompute.read(layer) or self.slots[layer]

    def counts_per_image(self, layer: int | None = None) -> list[int]:
        """Patch tokens of each image after ``layer`` blocks (default: all)."""
        state = self.state(layer)
        return [state.count] * state.images if state.counts is None else list(state.counts)

    def valid(self, layer: int | None = None) -> Tensor:
        """Where there are tokens after ``layer`` blocks, ``[B, n]`` bool: False is padding of images with fewer."""
        state = self.state(layer)
        if state.valid is not None:
            return state.valid
        return torch.ones(state.images, state.count, dtype=torch.bool, device=self.device)

    @property
    def decisions(self) -> list[Tensor]:
        """Cumulative keep masks ``[B, N]`` of the last run's stages, with gradients, of a strategy that trains."""
        return list(self.state().decisions)

    def source(self, layer: int | None = None) -> Assignment | SoftAssignment:
        """The map from the input patches, ``B*N`` of them, to the tokens after ``layer`` blocks."""
        state = self.state(layer)
        if (source := state.source) is not None:
            return source
        counts, device = self.counts_per_image(0), self.device
        return Assignment.identity(sum(counts), ptr=torch.tensor([0, *counts], device=device).cumsum(0), device=device)

    def size(self, layer: int | None = None) -> Tensor:
        """Weight of each token after ``layer`` blocks, ``[B, n]`` float32.

        Where the strategy merges or clusters, input patches that the token stands for; for GTP, its token scale; ones
        for what only drops tokens.
        """
        state = self.state(layer)
        if state.size is None:
            return state.unweighed(self.device)
        return state.size.view(state.images, -1)[:, self.num_prefix :]

    def __getstate__(self) -> dict[str, Any]:
        empty = dict.fromkeys(("output", "mask", "grids", "present", "device"))
        new = {"slots": [None] * (self.depth + 1), "recompute": Recompute(), "begun": False, "alike": True, "thread": 0}
        return {**self.__dict__, **empty, **new}
