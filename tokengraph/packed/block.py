"""A packed block on fewer units, and the hooks of its tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.coarse import KEPT, SITE, Coarse, ours
from tokengraph.packed.record import PackedRecord, keys_of
from tokengraph.packed.units import Units
from tokengraph.select.base import Select


class PackedBlock(Coarse):
    """A block of a packed tower that can reduce its units.

    It runs its own submodules; segments and rotary angles are those of the units whose places remain.
    """

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Takes rows ``[u * m * m, C]``; all other arguments are those of the whole sequence."""
        site = self.__dict__[SITE]
        record: PackedRecord = site.trace
        index, select, unit = site.index, record.select, record.side**2
        before = select.placement == "before"
        units, budgets = record.at(index), record.budgets(index if before else index + 1)
        if budgets is None and not units.coarse:
            record.units[index + 1] = units
            return super().forward(hidden_states, cu_seqlens, *args, **kwargs)  # type: ignore[misc]
        x = hidden_states
        if budgets is not None and before:
            x, units = self._reduce(x, units, budgets, select, unit)
        self.__dict__[KEPT] = {}
        x = x + self.attn(
            self.norm1(x), units.segments(cu_seqlens // unit) * unit, *args, **self._side(units, unit, kwargs)
        )
        if budgets is not None and select.placement in ("inside", "ahead"):
            x, units = self._reduce(x, units, budgets, select, unit)
        x = x + self.mlp(self.norm2(x))
        if budgets is not None and select.placement == "after":
            x, units = self._reduce(x, units, budgets, select, unit)
        record.units[index + 1] = units
        return x

    def _reduce(self, x: Tensor, units: Units, budgets: list[int], select: Select, unit: int) -> tuple[Tensor, Units]:
        """Reduces rows ``[u * m * m, C]``; a strategy that reads keys gets those of this block's attention."""
        kept = self.__dict__.pop(KEPT, {})
        keys = keys_of(kept["qkv"], self.attn.num_heads, unit) if "qkv" in kept else None
        rows, units = units.reduced(x.unflatten(0, (-1, unit)), budgets, select, keys)
        return rows.flatten(0, 1), units

    def _side(self, units: Units, unit: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Rotary angles of the units that remain; the longest segment is found anew."""
        side = dict(kwargs)
        for name in ("position_embeddings", "rotary_pos_emb"):
            value = side.get(name)
            if isinstance(value, Tensor):
                side[name] = _rows(value, units.stands, unit)
            elif value is not None:
                side[name] = tuple(_rows(table, units.stands, unit) for table in value)
        if side.get("max_seqlen") is not None:
            side["max_seqlen"] = None
        return side


def _rows(table: Tensor, stands: Tensor, unit: int) -> Tensor:
    """The rows of these units in a table over all patches."""
    return table.unflatten(0, (-1, unit))[stands].flatten(0, 1)


@ours
def begin_run(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the tower: notes the images' shapes, and the order in which windows take their units."""
    record: PackedRecord = module.__dict__[SITE].trace
    grid = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
    record.begin(grid, raster_of(module, grid, kwargs, record.side))


@ours
def whole_rows(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a merger: gives it all rows."""
    record: PackedRecord = module.__dict__[SITE].trace
    layer = module.__dict__[SITE].index
    units = record.at(record.depth if layer < 0 else layer)
    return (record.lift(args[0], record.depth if layer < 0 else layer), *args[1:]) if units.coarse else None


@ours
def whole_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of the tower: its last hidden state has all rows."""
    record: PackedRecord = module.__dict__[SITE].trace
    last = getattr(output, "last_hidden_state", None)
    if isinstance(last, Tensor) and record.at(record.depth).coarse:
        output.last_hidden_state = record.lift(last)
    return output


def raster_of(tower: Any, grid: Tensor, given: dict[str, Any], side: int) -> Tensor:
    """For each unit in the order of the tower's rows, its number row by row, ``[U]``."""
    if not (hasattr(tower, "window_size") and hasattr(tower, "fullatt_block_indexes")):
        return torch.arange(int(grid.prod(dim=1).sum()) // side**2, device=grid.device)
    if given.get("window_index") is not None:
        return given["window_index"]
    if hasattr(tower, "get_window_index"):  # before the towers took precomputed arguments
        index, _ = tower.get_window_index(grid)
    else:
        from transformers.vision_utils import get_vision_window_index

        index, _ = get_vision_window_index(
            grid, spatial_merge_size=side, window_size=tower.window_size, patch_size=tower.patch_size
        )
    return index.to(grid.device)
