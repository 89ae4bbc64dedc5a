"""What happened to the tokens of the last run: counts, sizes, and the way back to every input patch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from tokengraph.assignment import Assignment
from tokengraph.graph import TokenGraph
from tokengraph.soft import SoftAssignment
from tokengraph.state import State

RUNS = 8  # runs that may wait for their backward under gradient checkpointing


def in_backward() -> bool:
    """Whether autograd is at work in this thread: then a block that runs is being computed again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@dataclass
class Trace:
    """The record of one model's last run. Slot l holds the tokens after l blocks; a run overwrites the one before it.

    Gradient checkpointing runs blocks a second time, during backward. By then another run may have overwritten the
    slots, so a block that takes part in backward finds its tokens by the memory that its input lies in.

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
    slots: list[State | None] = field(init=False, repr=False)
    entered: OrderedDict[tuple[int, int], State] = field(init=False, repr=False)
    thread: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        self.slots = [None] * (self.depth + 1)
        self.entered = OrderedDict()

    def begin(self, images: int, count: int) -> State:
        """The state of a run's tokens as they come to the first attached block."""
        for layer in range(self.start, self.depth + 1):
            self.slots[layer] = None
        return self._input(images, count)

    def _input(self, images: int, count: int) -> State:
        return State(images, count, count, self.grid, grids=self.grids, present=self.present).at_input()

    def enter(self, index: int, x: Tensor) -> State | None:
        """The state of the tokens ``x [B, P+n, C]`` that come to block ``index``; ``None``: a new run begins.

        Raises:
            RuntimeError: If a block runs outside a run of its model, in two threads at once, or during backward for a
                run that is no longer known.
        """
        if torch.compiler.is_compiling():
            return None if index == self.start else self.slots[index]
        if in_backward():  # a checkpoint computes the block again
            state = self.entered.get((index, x.data_ptr()))
            if state is None or x.size(1) != self.num_prefix + state.count:
                raise RuntimeError(
                    "Expected backward to follow its own run (got blocks to compute again for a run that is no longer "
                    f"known). At most {RUNS} runs can wait for their backward under gradient checkpointing."
                )
            return state
        if index == self.start:
            self.thread = get_ident()
            return None
        self._check_thread()
        state = self.slots[index]
        if state is None or x.size(1) != self.num_prefix + state.count:
            raise RuntimeError(
                f"Expected block {index} to run as part of its model (got a call of its own). Call the model."
            )
        return state

    def remember(self, index: int, x: Tensor, state: State) -> None:
        """Keeps the state of tokens that come to block ``index`` and that backward may come back to."""
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or x.requires_grad):
            return
        key = (index, x.data_ptr())  # unique among living tensors; memory that is reused is overwritten here, too
        self.entered[key] = state
        self.entered.move_to_end(key)
        while len(self.entered) > 2 * RUNS * self.depth:  # backward writes, too
            self.entered.popitem(last=False)

    def leave(self, index: int, x: Tensor, state: State) -> None:
        """Writes what block ``index`` made, ``x [B, P+n', C]``, into the slot behind it."""
        if in_backward():
            self.remember(index + 1, x, state)  # for the next block of one checkpointed segment
            return
        self._check_thread()  # another may have begun while this one was in the block: its record must not be touched
        self.slots[index + 1] = state
        if index + 1 == self.depth:
            self.output = x.detach()

    def _check_thread(self) -> None:
        if not torch.compiler.is_compiling() and self.thread not in (0, get_ident()):
            raise RuntimeError("Expected one thread at a time (got two in one attached model). Give each a deepcopy.")

    @property
    def counts(self) -> list[int]:
        """Patch tokens an image before the first block and after each block, in the last run (planned, before one).

        Where images differ, the most of any; :meth:`counts_per_image` has each.
        """
        if self.slots[self.depth] is None:
            return list(self.plan)
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
        if layer >= self.start and (state := self.slots[layer]) is not None:
            return state
        first = self.slots[self.start]
        if first is None or layer > self.start:
            raise RuntimeError(
                f"Expected a run of the model up to layer {layer} before its trace is read (got none). "
                "Call the model first."
            )
        return first.at_input()

    def counts_per_image(self, layer: int | None = None) -> list[int]:
        """Patch tokens of each image after ``layer`` blocks (default: all)."""
        state = self.state(layer)
        return [state.count] * state.images if state.counts is None else list(state.counts)

    def valid(self, layer: int | None = None) -> Tensor:
        """Where there are tokens after ``layer`` blocks, ``[B, n]`` bool: False is padding of images with fewer."""
        state = self.state(layer)
        if state.valid is not None:
            return state.valid
        return torch.ones(state.images, state.count, dtype=torch.bool, device=self._device)

    @property
    def decisions(self) -> list[Tensor]:
        """Cumulative keep masks ``[B, N]`` of the last run's stages, with gradients, of a strategy that trains."""
        return list(self.state().decisions)

    def source(self, layer: int | None = None) -> Assignment | SoftAssignment:
        """The map from the input patches, ``B*N`` of them, to the tokens after ``layer`` blocks."""
        state = self.state(layer)
        if (source := state.source) is not None:
            return source
        counts, device = self.counts_per_image(0), self._device
        return Assignment.identity(sum(counts), ptr=torch.tensor([0, *counts], device=device).cumsum(0), device=device)

    @property
    def _device(self) -> torch.device | None:
        return None if self.output is None else self.output.device

    def size(self, layer: int | None = None) -> Tensor:
        """Weight of each token after ``layer`` blocks, ``[B, n]`` float32.

        Where the strategy merges or clusters, input patches that the token stands for; for GTP, its token scale; ones
        for what only drops tokens.
        """
        state = self.state(layer)
        if state.size is None:
            return state.unweighed(self._device)
        return state.size.view(state.images, -1)[:, self.num_prefix :]

    def lift(
        self, tokens: Tensor, *, layer: int | None = None, fill: Tensor | None = None, replenish: bool = False
    ) -> Tensor:
        """Brings tokens back to full resolution.

        Args:
            tokens: ``[B, n, C]``, or ``[B, P+n, C]`` (prefix tokens are then left out), as they are after ``layer``
                blocks of the last run.
            layer: Finished blocks; all by default.
            fill: Rows ``[B, N, C]`` that dropped tokens get instead of zeros.
            replenish: Dropped tokens come back with what the strategy stored (token migration). For features, as they
                are before the final norm.

        Returns:
            ``[B, N, C]``: a row for each of the N input patches, row-major; zeros at padding of coarsened images.

        Raises:
            ValueError: If ``tokens`` do not have the number of tokens that the layer had.

        Cost: one gather of ``[B, N, C]``; with Expedite the first time its reconstruction edges, too.
        """
        state = self._state_of(tokens, layer)
        if tokens.dim() != 3 or tokens.size(0) != state.images:
            raise ValueError(f"Expected tokens of shape [B={state.images}, n, C] (got {list(tokens.shape)}).")
        if tokens.size(1) == state.count + self.num_prefix:
            tokens = tokens[:, self.num_prefix :]
        elif tokens.size(1) != state.count:
            raise ValueError(
                f"Expected {state.count} tokens an image, or {state.count + self.num_prefix} with prefix tokens "
                f"(got {tokens.size(1)}). Give the layer that they come from."
            )
        if not state.coarse:
            return tokens
        lifted = state.lift(tokens, None if fill is None else fill.flatten(0, 1), replenish=replenish)
        return lifted.view(state.images, state.patches, tokens.size(2))

    def as_map(self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False) -> Tensor:
        """A feature map at full resolution, ``[B, C, H, W]``.

        Args:
            tokens: As for :meth:`lift`; by default what left the last block (before the final norm, no gradient).
            layer: Finished blocks; all by default.
            replenish: As for :meth:`lift`; what left the last block is replenished in any case.
        """
        full, state = self._full(tokens, layer, replenish)
        if state.one_grid is None:
            raise ValueError("Expected images of one patch grid (got images of any shape). Use trace.as_maps().")
        height, width = state.one_grid
        if height * width != full.size(1):
            raise ValueError(f"Expected {height} x {width} patches (got {full.size(1)}): patches were dropped before.")
        return full.transpose(1, 2).reshape(full.size(0), full.size(2), height, width).contiguous()

    def as_maps(
        self, tokens: Tensor | None = None, *, layer: int | None = None, replenish: bool = False
    ) -> list[Tensor]:
        """A feature map of each image at its own resolution, ``[C, H_b, W_b]``; arguments as for :meth:`as_map`."""
        full, state = self._full(tokens, layer, replenish)
        if state.grids is None:
            return list(self.as_map(tokens, layer=layer, replenish=replenish))
        pairs = zip(full, state.grids, strict=True)
        return [rows[: h * w].t().reshape(-1, h, w).contiguous() for rows, (h, w) in pairs]

    def _full(self, tokens: Tensor | None, layer: int | None, replenish: bool) -> tuple[Tensor, State]:
        """Rows ``[B, N, C]`` of every input patch, and the state that they come from."""
        if tokens is None:
            self.state()  # says so when there was no run yet
            tokens, replenish = self.output, True
            assert tokens is not None
        return self.lift(tokens, layer=layer, replenish=replenish), self._state_of(tokens, layer)

    def _state_of(self, tokens: Tensor, layer: int | None) -> State:
        """As :meth:`state`; in front of the first attached block, which may not have run, nothing is coarsened."""
        if layer is None or not 0 < layer <= self.start:
            return self.state(layer)
        patches = self.grid[0] * self.grid[1] if self.grids is None else tokens.size(1) - self.num_prefix
        return self._input(tokens.size(0), patches)

    def lift_sequence(self, tokens: Tensor) -> Tensor:
        """``[B, P+n, C]`` after the last block to ``[B, P+N, C]``, prefix tokens in front."""
        if not self.state().coarse:
            return tokens
        return torch.cat([tokens[:, : self.num_prefix], self.lift(tokens)], dim=1)

    def graph(self, layer: int | None = None) -> TokenGraph:
        """The graph that the strategy works on, as it is after ``layer`` blocks of the last run.

        Args:
            layer: Finished blocks; all by default.

        Returns:
            The tokens that are left, with edges and weights, positions in patch units, and their scales as ``size``.
            ``x`` are the features that the graph was built from.

        Raises:
            ValueError: If the strategy keeps no graph.
        """
        state = self.state(layer)
        if not hasattr(state.memory, "token_graph"):
            raise ValueError(
                "Expected a strategy that keeps a graph, as GTP(mode='propagate') on images of one shape (got none). "
                "Build one from features: tg.TokenGraph.from_model(model, images, layer=l).connect_knn(8)."
            )
        return state.memory.token_graph(state.patch, None if state.size is None else self.size(layer))

    def __getstate__(self) -> dict[str, Any]:
        empty = dict.fromkeys(("output", "grids", "present"))
        return {**self.__dict__, **empty, "slots": [None] * (self.depth + 1), "entered": OrderedDict()}
