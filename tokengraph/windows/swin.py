"""Window coarsening in one stage of timm's Swin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokengraph.adapters.coarse import Coarse
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.changes import Change
from tokengraph.windows.clusters import cluster_windows
from tokengraph.windows.grid import Pair, cut_of, split, stitch
from tokengraph.windows.merge import mean_keys, merged_update
from tokengraph.windows.plan import (
    WindowPlan,
    WindowSite,
    check_window_halves,
    example,
    here,
    kept_output,
    run_and_keep,
)
from tokengraph.windows.position import resized_bias, shift_mask
from tokengraph.windows.record import WindowRecord


def attend_windows(attention: Any, x: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Runs attention in shifted windows of any size that divides the map ``[B, H, W, C]``."""
    y, cut = split(torch.roll(x, (-shift[0], -shift[1]), (1, 2)), window)
    mask = shift_mask(cut.grid, window, shift, y)
    return torch.roll(stitch(attention(y, mask=mask), cut), shift, (1, 2))


def run_small(block: Any, x: Tensor) -> Tensor:
    """Runs a block's halves on the map of clusters: window ``(h, w)``, shift ``(h // 2, w // 2)`` where it had one."""
    plan, _ = here(block)
    h, w = plan.small
    down, right = block.shift_size
    return block.feed(block.attend(x, (h, w), (h // 2 if down else 0, w // 2 if right else 0)))


class SwinBlock(Coarse):
    """The halves of a block, by its own submodules; maps are ``[B, H, W, C]``."""

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any
    drop_path1: Any
    drop_path2: Any
    shift_size: Pair

    def attend(self, x: Tensor, window: Pair, shift: Pair) -> Tensor:
        """Runs the attention half in windows of any size that divides the map."""
        return x + self.drop_path1(attend_windows(self.attn, self.norm1(x), window, shift))

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half."""
        rows = x.flatten(1, 2)
        return (rows + self.drop_path2(self.mlp(self.norm2(rows)))).view_as(x)


class ClusteredSwinBlock(SwinBlock):
    """A block on the small grid: window ``(h, w)``, shift ``(h // 2, w // 2)`` where it had one."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns a map of clusters."""
        return run_small(self, x)


class ClusteredWindowAttention(Coarse):
    """The attention of such a block; resizes its bias to the small window in each call."""

    relative_position_bias_table: Tensor

    def _get_rel_pos_bias(self) -> Tensor:
        plan, _ = here(self)
        return resized_bias(self.relative_position_bias_table, plan.window, plan.small)


class ClusteredSwinStage(Coarse):
    """The stage: clusters before block ``before``, reconstructs after block ``until - 1``."""

    downsample: Any
    blocks: Any
    grad_checkpointing: bool

    def forward(self, x: Tensor) -> Tensor:
        """The stage's own forward; full maps in and out."""
        refuse_tracing(x)
        plan, site = here(self)
        if plan.nothing:
            return super().forward(x)  # type: ignore[misc]
        x = self.downsample(x)
        site.trace.begin()
        clusters = None
        for index, block in enumerate(self.blocks):
            if index == plan.before:
                clusters = cluster_windows(x, plan.window, plan.small, plan.to_grid, padding=plan.padding)
                x = clusters.map
                site.trace.leave(index, x, clusters, coarse=True)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if index + 1 == plan.until:
                assert clusters is not None
                x = clusters.restore(x)
                site.trace.leave(index, x, clusters, coarse=False)
        return x


class MergedSwinBlock(SwinBlock):
    """A block whose MLP runs on merged tokens."""

    _attn: Any

    def forward(self, x: Tensor) -> Tensor:
        """Full maps in and out. Keys are rolled back to their places before the shift."""
        refuse_tracing(x)
        plan, _ = here(self)
        if plan.nothing:
            return super().forward(x)  # type: ignore[misc]
        y, qkv = run_and_keep(self, lambda: self._attn(self.norm1(x)), "attn.qkv")
        x = x + self.drop_path1(y)
        keys = stitch(mean_keys(qkv, self.attn.num_heads), cut_of(x, plan.window))
        keys = torch.roll(keys, self.shift_size, (1, 2))
        update = merged_update(lambda rows: self.mlp(self.norm2(rows)), x, keys, plan.select, plan.window, plan.keep)
        return x + self.drop_path2(update)


def swin_stage(core: nn.Module, stage: int) -> nn.Module:
    """A stage of the model.

    Raises:
        ValueError: If there is no such stage.
    """
    stages = list(core.layers)  # type: ignore[arg-type]
    if not 0 <= stage < len(stages):
        raise ValueError(f"Expected 0 <= stage < {len(stages)}, the stages of the model (got stage={stage}).")
    return stages[stage]


def swin_changes(stage: nn.Module, plan: WindowPlan, record: WindowRecord) -> list[Change]:
    """The changes to the stage and its blocks."""
    changed: list[tuple[int, Any]] = list(enumerate(stage.blocks))[plan.before : plan.until]  # type: ignore[arg-type]
    sites = {index: WindowSite(record, index, plan=plan) for index, _ in changed}
    if plan.clusters is None:
        return [Change(b, sites[i], MergedSwinBlock, hooks=[kept_output(b, "attn.qkv")]) for i, b in changed]
    changes = [Change(stage, WindowSite(record, plan=plan), ClusteredSwinStage)]
    for index, block in changed if not plan.nothing else []:
        changes.append(Change(block, sites[index], ClusteredSwinBlock))
        attention = WindowSite(record, index, plan=plan)
        changes.append(Change(block.attn, attention, ClusteredWindowAttention))
    return changes


def check_swin(stage: nn.Module, plan: WindowPlan) -> None:
    """Raises ValueError if a block's forward, with or without a shift, differs from its two halves."""
    changed: Any = list(stage.blocks)[plan.before : plan.until]  # type: ignore[arg-type]
    for block in {(type(b), b.shift_size): b for b in changed}.values():
        a, b = block.window_size
        height, width = (-(-size // side) * side for size, side in zip(block.input_resolution, (a, b), strict=True))
        x = example(height, width, block.dim)  # type: ignore[arg-type]
        shift = block.shift_size
        check_window_halves(block, SwinBlock, lambda probe, y, s=shift, w=(a, b): probe.feed(probe.attend(y, w, s)), x)
