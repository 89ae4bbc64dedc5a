"""The planner of packed towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokengraph.attach.changes import Change, Hook
from tokengraph.attach.handle import Handle
from tokengraph.attach.kept import KeptOutput
from tokengraph.attach.planner import Found, Options, Plan, planner
from tokengraph.attach.site import Mark
from tokengraph.packed.block import PackedBlock, begin_run, whole_output, whole_rows
from tokengraph.packed.find import find_packed, has_packed, mergers
from tokengraph.packed.record import PackedRecord
from tokengraph.schedule import returning, tokens_per_layer
from tokengraph.select.base import Select


@dataclass(eq=False, repr=False)
class PackedAttachment(Handle):
    """A strategy attached to a packed tower. ``trace.counts`` has the units after each block."""

    trace: PackedRecord
    select: Select


def _find(model: nn.Module, select: Select, options: Options) -> Found:
    tower = find_packed(model)
    assert tower is not None  # the planner is asked for such models alone
    return Found(tower, lambda: tower.blocks, None)  # type: ignore[arg-type,return-value]


@planner(Select, _find, serves=has_packed)
def plan_packed(model: nn.Module, found: Found, select: Select, options: Options) -> Plan:
    """Plans for a packed tower, alone or in its vision-language model.

    Units are squares of patches that the merger folds. Each frame is reduced by itself; mergers get every unit back,
    so that nothing behind the tower changes.

    Raises:
        ValueError: If the strategy reads more of attention than keys or learns, or options do not apply here.
    """
    tower: Any = found.core
    depth, channels = len(found.blocks), int(tower.blocks[0].norm1.weight.numel())
    _check_options(options)
    chosen, schedule = select.bind(channels, depth, options.schedule)
    _check_strategy(chosen)
    plan = tokens_per_layer(schedule, depth, 4096)  # raises if the schedule does not fit the depth
    if any(after > before for before, after in zip(plan[:-1], plan[1:], strict=True)) or returning(schedule, depth, 64):
        raise ValueError(
            "Expected a schedule without 'reconstruct' for a packed tower (got one with it). Mergers get every unit "
            "back by themselves."
        )
    for block in {type(b): b for b in found.blocks}.values():
        _check_halves(block, channels, int(tower.spatial_merge_size) ** 2)
    record = PackedRecord(depth, int(tower.spatial_merge_size), chosen, schedule)
    changes = [Change(tower, Mark(record, original=None), hooks=_tower_hooks(tower))]
    blocks: list[Any] = found.blocks
    for index, block in enumerate(blocks):
        hooks = [Hook(block.attn.qkv, KeptOutput(block, "qkv"))] if chosen.reads == "keys" else []
        changes.append(Change(block, Mark(record, index), PackedBlock, hooks=hooks))
    places = [-1, *(int(i) + 1 for i in getattr(tower, "deepstack_visual_indexes", ()))]
    for place, module in zip(places, mergers(tower), strict=True):
        changes.append(Change(module, Mark(record, place), hooks=[Hook(module, whole_rows, before=True)]))
    return Plan(changes, record, chosen, PackedAttachment)


def _tower_hooks(tower: nn.Module) -> list[Hook]:
    return [Hook(tower, begin_run, before=True, with_kwargs=True), Hook(tower, whole_output)]


def _check_options(options: Options) -> None:
    if options.prop_attn not in (None, False, "none"):
        raise ValueError(
            f"Expected no prop_attn for a packed tower (got {options.prop_attn!r}): its attention takes no mask, so "
            "merged units cannot count by size."
        )
    if options.adapter is not None:
        raise ValueError("Expected no adapter for a packed tower (got one). It is found by its parts.")


def _check_strategy(select: Select) -> None:
    if select.reads not in ("nothing", "keys") or select.learns or select.placement == "around" or select.stores:
        raise ValueError(
            f"Expected a strategy that reads features or keys for a packed tower (got {type(select).__name__}, which "
            f"reads {select.reads!r}, learns, or brings tokens back). Use one such as 'tome' or 'dpc-knn'."
        )


def _check_halves(block: Any, channels: int, unit: int) -> None:
    """Raises unless the block is the two halves that :class:`PackedBlock` runs, bit for bit."""
    parameter = next(block.parameters())
    if parameter.is_meta:
        return
    x = torch.linspace(-2, 2, 2 * unit * channels, device=parameter.device).sin().view(2 * unit, -1)
    x = x.to(parameter.dtype)
    width = channels // block.attn.num_heads
    angle = torch.linspace(0, 3, 2 * unit * width, device=x.device).view(2 * unit, width)
    tables = (angle.cos(), angle.sin())
    ends = torch.tensor([0, 2 * unit], dtype=torch.int32, device=x.device)
    with torch.no_grad():
        wanted = type(block).forward(block, x, cu_seqlens=ends, position_embeddings=tables)
        half = x + block.attn(block.norm1(x), cu_seqlens=ends, position_embeddings=tables)
        got = half + block.mlp(block.norm2(half))
    if not torch.equal(wanted, got):
        raise ValueError(
            f"Expected {type(block).__name__} to be attention and MLP with a norm in front of each (got outputs that "
            f"differ by up to {(wanted - got).abs().max().item():.3g}). It has unknown parts. Nothing changed."
        )
