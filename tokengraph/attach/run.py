"""The record that blocks write during a run: the state of the tokens after each block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.base import InputShape
from tokengraph.attach.plan import Plans
from tokengraph.attach.recompute import RUNS, Recompute
from tokengraph.attach.state import Asked, State
from tokengraph.attach.threads import OneThread
from tokengraph.maps.lineage import Lineage
from tokengraph.nn.modes import in_backward


@dataclass(eq=False)
class Run(OneThread):
    """The last run of one model. Slot l holds the state after l blocks; each run overwrites the one before.

    Gradient checkpointing runs blocks a second time, during backward. By then another run may have overwritten the
    slots, so backward reads :class:`tokengraph.attach.recompute.Recompute` instead.

    Copies of the model and pickles start with an empty record.

    Args:
        num_prefix: P, the prefix tokens in front of the sequence.
        depth: Blocks in the model.
        start: The first slot that runs write; before it nothing is coarsened.
        plans: Makes each run's plan.
        shape: Shape of the images in the current run; before one, of the model's own image size.

    Attributes:
        output: The last block's output ``[B, P+n, C]`` in the last run, without gradient; ``None`` before one.
        mask: The last user's attention mask that this run checked for padding; ``None`` before one.
        slots: The state after each number of blocks, ``depth + 1`` entries; ``None`` where the run has not arrived.
        inner: The state inside each block that ran around fewer tokens, ``depth`` entries; ``None`` elsewhere.
        recompute: States for gradient checkpointing.
        begun: True if any run has begun.
        alike: True if all runs had images of one grid.
        device: Device of the run's tokens; ``None`` before one.
        thread: The running thread; 0 if unknown.
        whole: True if a head that needs every patch of the output called the model.
    """

    num_prefix: int
    depth: int
    start: int
    plans: Plans
    shape: InputShape
    output: Tensor | None = field(init=False, default=None, repr=False)
    mask: Tensor | None = field(init=False, default=None, repr=False)
    slots: list[State | None] = field(init=False, repr=False)
    inner: list[State | None] = field(init=False, repr=False)
    recompute: Recompute[State] = field(init=False, repr=False, default_factory=Recompute)
    begun: bool = field(init=False, default=False, repr=False)
    alike: bool = field(init=False, default=True, repr=False)
    device: torch.device | None = field(init=False, default=None, repr=False)
    thread: int = field(init=False, default=0, repr=False)
    whole: bool = field(init=False, default=False, repr=False)

    def __post_init__(self) -> None:
        self.slots, self.inner = [None] * (self.depth + 1), [None] * self.depth

    def note(self, look: Callable[[], InputShape]) -> None:
        """Begins a run when its images arrive; ``look`` returns their shape."""
        if torch.compiler.is_compiling():  # the graph would hold the values read here as constants
            self._forget()
            self.shape = self._with_grid(look())
        elif in_backward():
            self.recompute.note(self._with_grid(look()))
        else:
            before, ran = self.shape.grid, self.begun
            self._forget()
            shape = self.shape = self._with_grid(look())
            self.alike = self.alike and (not ran or (shape.grids is None and shape.grid == before))

    def _with_grid(self, shape: InputShape) -> InputShape:
        """Fills in a missing grid (images differ) with that of the run before."""
        return shape if shape.grid is not None else replace(shape, grid=self.shape.grid)

    def note_caller(self, whole: bool) -> None:
        """Notes whether a head that needs every patch called the model; ignores calls that backward repeats."""
        if not in_backward():
            self.whole = whole

    def begin(self, x: Tensor) -> State:
        """Returns the state of ``x [B, P+N, C]``, a run's tokens at the first attached block.

        Raises:
            ValueError: If there are more patch tokens than the grid has patches, or the schedule does not fit them.
        """
        shape = self.recompute.shape() or self.shape
        images, count = x.size(0), x.size(1) - self.num_prefix
        assert shape.grid is not None
        if shape.grids is None and count > math.prod(shape.grid):
            raise ValueError(
                f"Expected at most {' x '.join(map(str, shape.grid))} patch tokens an image after {self.num_prefix} "
                f"prefix tokens (got {count}). Give the adapter the model's own grid and number of prefix tokens."
            )
        if not in_backward():
            self._forget()
            self.device = x.device
        return State.at_input(images, count, Asked(shape, self.plans.table(count, shape, self.whole)))

    def _forget(self) -> None:
        for layer in range(self.depth + 1):
            self.slots[layer] = None
        for index in range(self.depth):
            self.inner[index] = None
        self.output, self.mask, self.begun = None, None, True
        self.take_thread()
        if not torch.compiler.is_compiling():
            self.recompute.let_go()

    def enter(self, index: int, x: Tensor) -> State | None:
        """Returns the state of ``x [B, P+n, C]``, the input of block ``index``; ``None`` if a new run begins.

        Raises:
            RuntimeError: If a block runs outside a run of its model, in two threads at once, or during backward for a
                run whose states are no longer kept.
        """
        if torch.compiler.is_compiling():
            return None if index == self.start else self.slots[index]
        if in_backward():
            state = self.recompute.find(index, x)
            if state is None and index == self.start and (self.alike or self.recompute.shape() is not None):
                return None  # for example a checkpoint around the whole model, which starts a new run
            if state is None or not self._fits(x, state):
                raise RuntimeError(
                    f"Expected block {index} to be recomputed on the tokens of a recent run (got others). At most "
                    f"{RUNS} runs can wait for their backward if blocks are checkpointed one by one. Hooks must not "
                    "replace a block's input, and tensors saved by checkpoints must not move to other memory."
                )
            return state
        if index == self.start:
            return None
        self.check_thread()
        state = self.slots[index]
        if state is None or not self._fits(x, state):
            raise RuntimeError(
                f"Expected block {index} to run as part of its model (got a call of its own). Call the model."
            )
        return state

    def _fits(self, x: Tensor, state: State) -> bool:
        return x.size(1) == self.num_prefix + state.lineage.now.width

    def lineage_at(self, index: int, x: Tensor) -> Lineage | None:
        """Returns the lineage of ``x [B, P+n, C]``, the input of block ``index``, as :meth:`enter` finds it."""
        state = self.enter(index, x)
        return None if state is None else state.lineage

    def remember(self, index: int, x: Tensor, state: State) -> None:
        """Keeps the state of block ``index``'s input for gradient checkpointing."""
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or x.requires_grad or in_backward()):
            return
        self.recompute.remember(index, x, state, 2 * RUNS * self.depth)  # backward adds entries too

    def write(self, layer: int, state: State) -> None:
        """Stores the state after ``layer`` blocks of the current run."""
        if in_backward():
            self.recompute.write(layer, state)
        else:
            self.slots[layer] = state

    def leave(self, index: int, x: Tensor, state: State, inner: State | None = None) -> None:
        """Stores the state of ``x [B, P+n', C]``, the output of block ``index``, and the state inside it."""
        if in_backward():
            self.recompute.write(index + 1, state)
            self.remember(index + 1, x, state)  # for the next block of one checkpointed segment
            return
        self.check_thread()  # another thread may have begun a run meanwhile; its record stays untouched
        self.slots[index + 1] = state
        if inner is not None:
            self.inner[index] = inner
        if index + 1 == self.depth:
            self.output = x.detach()

    def at(self, layer: int) -> State | None:
        """Returns the state after ``layer`` blocks, inside backward the recomputed one; ``None`` if there is none."""
        return self.recompute.read(layer) or self.slots[layer]

    def __getstate__(self) -> dict[str, Any]:
        empty = dict.fromkeys(("output", "mask", "device"))
        shape = InputShape(self.shape.grid, ordered=self.shape.ordered)
        slots = {"slots": [None] * (self.depth + 1), "inner": [None] * self.depth}
        new = {**slots, "recompute": Recompute(), "begun": False, "alike": True, "thread": 0}
        return {**self.__dict__, **empty, "shape": shape, **new}
