"""Window coarsening in one stage of timm's Swin V2, whose positions come from a network of distances."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.coarse import Coarse
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.changes import Change
from tokengraph.windows.grid import Pair
from tokengraph.windows.merge import merged_update
from tokengraph.windows.plan import WindowPlan, WindowSite, check_window_halves, example, here
from tokengraph.windows.position import relative_index
from tokengraph.windows.record import WindowRecord
from tokengraph.windows.swin import ClusteredSwinStage, attend_windows, run_small


class Swin2Block(Coarse):
    """The halves of a block, whose norms come behind attention and MLP; maps are ``[B, H, W, C]``."""

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any
    drop_path1: Any
    drop_path2: Any
    shift_size: Pair

    def attend(self, x: Tensor, window: Pair, shift: Pair) -> Tensor:
        """Runs the attention half in windows of any size that divides the map."""
        return x + self.drop_path1(self.norm1(attend_windows(self.attn, x, window, shift)))

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half."""
        rows = x.flatten(1, 2)
        return (rows + self.drop_path2(self.norm2(self.mlp(rows)))).view_as(x)


class ClusteredSwin2Block(Swin2Block):
    """A block on the small grid: window ``(h, w)``, shift ``(h // 2, w // 2)`` where it had one."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns a map of clusters."""
        return run_small(self, x)


class MergedSwin2Block(Swin2Block):
    """A block whose MLP runs on merged tokens."""

    _attn: Any

    def forward(self, x: Tensor) -> Tensor:
        """Full maps in and out; the keys by which tokens are matched are made of the block's input once more."""
        refuse_tracing(x)
        plan, _ = here(self)
        if plan.nothing:
            return super().forward(x)  # type: ignore[misc]
        weight = self.attn.qkv.weight.detach().chunk(3)[1]
        keys = F.linear(x.detach(), weight.to(x.dtype)).unflatten(3, (self.attn.num_heads, -1)).float()
        keys = F.normalize(keys, dim=-1).mean(dim=3)
        x = x + self.drop_path1(self.norm1(self._attn(x)))
        update = merged_update(lambda rows: self.norm2(self.mlp(rows)), x, keys, plan.select, plan.window, plan.keep)
        return x + self.drop_path2(update)


def small_positions(attention: Any, window: Pair, clusters: Pair) -> dict[str, Any]:
    """Inputs of the network of positions for windows of clusters, under the names of the attention's buffers.

    Clusters of a window lie as far apart as the patches that they stand for: ``a / h`` rows and ``b / w`` columns.

    Args:
        attention: The block's attention.
        window: ``(a, b)``.
        clusters: ``(h, w)``.
    """
    own = attention.pretrained_window_size
    norm = own if own[0] > 0 else window
    like, lines = attention.proj.weight, []
    for side, few, whole in zip(window, clusters, norm, strict=True):
        steps = torch.arange(-(few - 1), few, device=like.device, dtype=torch.float32) * (side / few)
        far = steps / max(whole - 1, 1) * 8
        lines.append(far.sign() * torch.log2(far.abs() + 1) / math.log2(8))
    table = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)[None].to(like.dtype)
    index = relative_index(*clusters, str(like.device))
    return {"relative_coords_table": table, "relative_position_index": index, "window_size": clusters}


def swin2_changes(stage: nn.Module, plan: WindowPlan, record: WindowRecord) -> list[Change]:
    """The changes to the stage and its blocks."""
    changed: list[tuple[int, Any]] = list(enumerate(stage.blocks))[plan.before : plan.until]  # type: ignore[arg-type]
    sites = {index: WindowSite(record, index, plan=plan) for index, _ in changed}
    if plan.clusters is None:
        return [Change(b, sites[i], MergedSwin2Block) for i, b in changed]
    changes = [Change(stage, WindowSite(record, plan=plan), ClusteredSwinStage)]
    for index, block in changed if not plan.nothing else []:
        changes.append(Change(block, sites[index], ClusteredSwin2Block))
        values = small_positions(block.attn, plan.window, plan.small)
        changes.append(Change(block.attn, WindowSite(record, index, plan=plan), values=values))
    return changes


def check_swin2(stage: nn.Module, plan: WindowPlan) -> None:
    """Raises ValueError if a block's forward, with or without a shift, differs from its two halves."""
    changed: Any = list(stage.blocks)[plan.before : plan.until]  # type: ignore[arg-type]
    for block in {(type(b), b.shift_size): b for b in changed}.values():
        a, b = block.window_size
        height, width = (-(-size // side) * side for size, side in zip(block.input_resolution, (a, b), strict=True))
        x, shift = example(height, width, block.dim), block.shift_size
        check_window_halves(block, Swin2Block, lambda probe, y, s=shift, w=(a, b): probe.feed(probe.attend(y, w, s)), x)
