"""What the blocks of a run write: the tokens after each block, for the blocks behind it and for the user's trace."""

from __future__ import annotations

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
    """The last run of one model. Slot l holds the tokens after l blocks; a run overwrites the one before it.

    Gradient checkpointing runs blocks a second time, during backward. By then another run may have overwritten the
    slots, so they are not asked; see :class:`tokengraph.attach.recompute.Recompute`.

    Copies of the model, and what is pickled, start with an empty record.

    Args:
        num_prefix: P, the prefix tokens in front of the sequence.
        depth: Blocks in the model.
        start: The first slot that is ever written; before it nothing is coarsened.
        plans: Makes the table of what is planned.
        shape: Of the images of the run that is going on; at first, of the model's own size.

    Attributes:
        output: Tokens ``[B, P+n, C]`` that left the last block of the last run, without gradient; ``None`` until then.
        mask: The user's attention mask that was last looked through for padding in this run; ``None``: none yet.
        slots: The tokens after each number of blocks, ``depth + 1`` states; ``None`` where the run has not been.
        recompute: What backward needs of runs that others have overwritten, and what it computes again.
        begun: Whether any run has begun.
        alike: Whether all runs had images of one grid.
        device: Where the run's tokens are; ``None`` before one.
        thread: The thread that runs; 0: not known.
        whole: Whether the run was called by a head that needs every patch of the output.
    """

    num_prefix: int
    depth: int
    start: int
    plans: Plans
    shape: InputShape
    output: Tensor | None = field(init=False, default=None, repr=False)
    mask: Tensor | None = field(init=False, default=None, repr=False)
    slots: list[State | None] = field(init=False, repr=False)
    recompute: Recompute[State] = field(init=False, repr=False, default_factory=Recompute)
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
            self.shape = self._with_grid(look())
        elif in_backward():
            self.recompute.note(self._with_grid(look()))
        else:
            before, ran = self.shape.grid, self.begun
            self._forget()
            shape = self.shape = self._with_grid(look())
            self.alike = self.alike and (not ran or (shape.grids is None and shape.grid == before))

    def _with_grid(self, shape: InputShape) -> InputShape:
        """The shape with a grid also where images differ: that of the run before."""
        return shape if shape.grid is not None else replace(shape, grid=self.shape.grid)

    def note_caller(self, whole: bool) -> None:
        """Notes whether a head that needs every patch has called the model; what backward runs again says nothing."""
        if not in_backward():
            self.whole = whole

    def begin(self, x: Tensor) -> State:
        """The state of a run's tokens ``x [B, P+N, C]`` as they come to the first attached block.

        Raises:
            ValueError: If there are more patch tokens than the grid has patches, or the schedule does not fit them.
        """
        shape = self.recompute.shape() or self.shape
        images, count = x.size(0), x.size(1) - self.num_prefix
        assert shape.grid is not None
        if shape.grids is None and count > shape.grid[0] * shape.grid[1]:
            raise ValueError(
                f"Expected at most {shape.grid[0]} x {shape.grid[1]} patch tokens an image behind {self.num_prefix} "
                f"prefix tokens (got {count}). Give the adapter the grid and the prefix tokens that the model has."
            )
        if not in_backward():
            self._forget()
            self.device = x.device
        return State.at_input(images, count, Asked(shape, self.plans.table(count, shape, self.whole)))

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
            if state is None and index == self.start and (self.alike or self.recompute.shape() is not None):
                return None  # a checkpoint around the whole model, say: a run of its own
            if state is None or not self._fits(x, state):
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
        if state is None or not self._fits(x, state):
            raise RuntimeError(
                f"Expected block {index} to run as part of its model (got a call of its own). Call the model."
            )
        return state

    def _fits(self, x: Tensor, state: State) -> bool:
        return x.size(1) == self.num_prefix + state.lineage.now.width

    def lineage_at(self, index: int, x: Tensor) -> Lineage | None:
        """Where the tokens ``x [B, P+n, C]`` that come to block ``index`` are from, as :meth:`enter` finds it."""
        state = self.enter(index, x)
        return None if state is None else state.lineage

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

    def at(self, layer: int) -> State | None:
        """The tokens after ``layer`` blocks; inside backward those that were computed again; ``None``: never there."""
        return self.recompute.read(layer) or self.slots[layer]

    def __getstate__(self) -> dict[str, Any]:
        empty = dict.fromkeys(("output", "mask", "device"))
        shape = InputShape(self.shape.grid, ordered=self.shape.ordered)
        new = {"slots": [None] * (self.depth + 1), "recompute": Recompute(), "begun": False, "alike": True, "thread": 0}
        return {**self.__dict__, **empty, "shape": shape, **new}
