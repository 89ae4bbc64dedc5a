"""Stage 3 of Fast-iTPN: the main blocks, optionally with token migration and token gathering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokengraph.flat.layout import take_rows
from tokengraph.models.gathering import Attend, TokenGathering, Windows, full_attention, make_windows
from tokengraph.models.main_block import MainBlock
from tokengraph.select.migration.migration import TokenMigration
from tokengraph.select.migration.redundancy import (
    Departure,
    Redundant,
    departures,
    pick_redundant,
    replenish,
)


@dataclass(frozen=True, eq=False)
class TokenRecord:
    """The result of stage 3.

    Attributes:
        table: The final value of every position in raster order, ``[B, N, C]``.
        tokens: The tokens that stayed to the end, ``[B, n, C]``.
        ids: The positions of these tokens, ``[B, n]``, ascending.
        steps: The migration steps.
        grid: ``(H, W)`` of the N positions.
    """

    table: Tensor
    tokens: Tensor
    ids: Tensor
    steps: tuple[Departure, ...]
    grid: tuple[int, int]

    @property
    def left_at(self) -> Tensor:
        """``[B, N]``: the block, counted from 1, after which a position left; 0 if it stayed."""
        return departures(self.steps, self.ids, self.table.size(1))[0]

    @property
    def twin(self) -> Tensor:
        """``[B, N]``: the position that was most similar when a position left; -1 if it stayed."""
        return departures(self.steps, self.ids, self.table.size(1))[1]


@dataclass
class _State:
    """The remaining tokens."""

    grid: tuple[int, int]
    ids: Tensor  # [B, n]
    size: Tensor | None  # [B, n] float32: number of tokens that each one represents
    steps: tuple[Departure, ...] = ()


def main_stage(
    blocks: Sequence[MainBlock],
    x: Tensor,
    grid: tuple[int, int],
    *,
    migration: TokenMigration | None = None,
    gathering: TokenGathering | None = None,
    learned: Tensor | None = None,
    checkpointing: bool = False,
) -> TokenRecord:
    """Runs the main blocks.

    Args:
        blocks: L blocks.
        x: Tokens with their positions added, ``[B, N, C]``, raster order.
        grid: ``(H, W)``, N patches.
        migration: After Fast-iTPN; the definition is this project's own. ``None``: all tokens stay.
        gathering: After Fast-iTPN; the definition is this project's own. ``None``: global attention.
        learned: Learned part of the gathering tokens, ``[m, C]``; needed if ``gathering`` has such tokens.
        checkpointing: Keep no activations inside blocks; recompute them in backward.

    Returns:
        The tokens of all positions, and the steps in which tokens left.

    Raises:
        ValueError: If gathering tokens have no learned part of their number, or the schedule names a missing layer.
    """
    images, count, _ = x.shape
    removed = migration.removed(len(blocks), count) if migration is not None else {}
    ids = torch.arange(count, device=x.device).expand(images, count)
    weighs = migration is not None and migration.size_weight
    state = _State(grid, ids, torch.ones(images, count, device=x.device) if weighs else None)
    if gathering is not None and gathering.num_hubs:
        _check_learned(gathering, learned)
        x = torch.cat([x, gathering.start(x, grid, learned)], dim=1)  # type: ignore[arg-type]
    n, windows = count, _windows(gathering, state)
    for layer, block in enumerate(blocks, 1):
        attend = _attention(gathering, layer, windows, state, x.size(1))
        if checkpointing:
            x, keys = checkpoint(block.run, x, attend, use_reentrant=False)  # type: ignore[misc]
        else:
            x, keys = block.run(x, attend)
        if layer in removed and migration is not None:
            tokens = x[:, :n]
            kept = _leave(tokens, keys[:, :n], layer, removed[layer], state, migration)
            x, n = torch.cat([kept, x[:, n:]], dim=1) if x.size(1) > n else kept, kept.size(1)
            windows = _windows(gathering, state)
    rule = "identity" if migration is None else migration.replenish
    return TokenRecord(replenish(x[:, :n], state.ids, state.steps, rule), x[:, :n], state.ids, state.steps, grid)


def _check_learned(gathering: TokenGathering, learned: Tensor | None) -> None:
    found = 0 if learned is None else learned.size(0)
    if found != gathering.num_hubs:
        raise ValueError(
            f"Expected a learned part for m={gathering.num_hubs} gathering tokens (got one for {found}). Give "
            "gathering to the model's constructor, which makes it."
        )


def _leave(tokens: Tensor, keys: Tensor, layer: int, removed: int, state: _State, migration: TokenMigration) -> Tensor:
    """Removes the redundant tokens and returns the others."""
    board = state.grid if migration.split == "checkerboard" and not state.steps else None
    choice = pick_redundant(keys if migration.similarity == "keys" else tokens, removed, board)
    state.steps += (Departure(layer, choice, state.ids, tokens),)
    if state.size is not None:
        state.size = _inherit(state.size, choice)
    state.ids = state.ids.gather(1, choice.keep)
    return take_rows(tokens, choice.keep)


def _inherit(size: Tensor, choice: Redundant) -> Tensor:
    """Adds the sizes of the removed tokens to their most similar tokens: ``[B, n]`` to ``[B, n - r]``."""
    return size.scatter_add(1, choice.twin, size.gather(1, choice.dropped)).gather(1, choice.keep)


def _windows(gathering: TokenGathering | None, state: _State) -> Windows | None:
    """Returns the windows of the remaining tokens, or ``None`` if there are no windows."""
    window = None if gathering is None else gathering.window_on(state.grid)
    if window is None or (window[0] >= state.grid[0] and window[1] >= state.grid[1]):
        return None
    return make_windows(state.grid, window, state.ids if state.steps else None, device=state.ids.device)


def _attention(
    gathering: TokenGathering | None, layer: int, windows: Windows | None, state: _State, count: int
) -> Attend:
    """Returns the attention function of one block over ``count`` nodes."""
    bias = None
    if state.size is not None and state.steps:  # gathering tokens have size 1
        bias = F.pad(state.size.log(), (0, count - state.size.size(1)))
    if gathering is not None:
        return gathering.attend(layer, windows, bias)
    return full_attention if bias is None else partial(full_attention, key_bias=bias)
