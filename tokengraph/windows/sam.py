"""Window coarsening in timm's SAM-style ViT."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.coarse import SITE, Coarse, ours
from tokengraph.attach.changes import Change, Hook
from tokengraph.windows.block import ClusteredBlock, MapBlock, MergedBlock
from tokengraph.windows.grid import Pair, split, stitch
from tokengraph.windows.plan import WindowPlan, WindowSite, check_window_halves, example, here, kept_output
from tokengraph.windows.record import WindowRecord


class SamBlock(MapBlock):
    """The halves of a block of timm's SAM, by its own submodules."""

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any
    ls1: Any
    ls2: Any
    drop_path1: Any
    drop_path2: Any

    def attend(self, x: Tensor, window: Pair | None) -> Tensor:
        """Runs the attention half in windows of this size; ``None``: over the whole map."""
        y = self.norm1(x)
        if window is None:
            return x + self.drop_path1(self.ls1(self.attn(y)))
        y, cut = split(y, window)
        y = self.drop_path1(self.ls1(self.attn(y.unflatten(1, window))))
        return x + stitch(y.flatten(1, 2), cut)

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half."""
        rows = x.flatten(1, 2)
        return (rows + self.drop_path2(self.ls2(self.mlp(self.norm2(rows))))).view_as(x)

    def update(self, rows: Tensor) -> Tensor:
        """The MLP half without its residual."""
        return self.ls2(self.mlp(self.norm2(rows)))

    def dropped(self, update: Tensor) -> Tensor:
        """Stochastic depth on the update of the MLP."""
        return self.drop_path2(update)

    def heads(self) -> tuple[int, Any]:
        """Heads, and the norm of keys."""
        return self.attn.num_heads, self.attn.k_norm


class ClusteredSamBlock(ClusteredBlock, SamBlock):
    """A block of timm's SAM on clusters."""


class MergedSamBlock(MergedBlock, SamBlock):
    """A windowed block of timm's SAM whose MLP runs on merged tokens."""


class WindowSam(Coarse):
    """The model: maps of intermediate layers come back at full resolution."""

    blocks: Any

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's, with every map ``[B, C, H, W]`` reconstructed; with ``norm`` this happens before the neck."""
        plan, site = here(self)
        out = super().forward_intermediates(  # type: ignore[misc]
            x, indices, norm, stop_early, output_fmt, intermediates_only
        )
        if norm or plan.nothing or site.trace.clusters is None:
            return out
        taken = _taken(indices, len(self.blocks))
        maps = [
            _restored(site.trace, m) if plan.before <= i < plan.until - 1 else m
            for i, m in zip(taken, out if intermediates_only else out[1], strict=True)
        ]
        return maps if intermediates_only else (out[0], maps)


@ours
def begin(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of the embedding: starts a new run in the record."""
    module.__dict__[SITE].trace.begin()


@ours
def restore_first(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of the neck: reconstructs the full map if the last block left clusters."""
    site: WindowSite = module.__dict__[SITE]
    return (_restored(site.trace, args[0]), *args[1:]) if site.trace.coarse else None


def _restored(record: WindowRecord, x: Tensor) -> Tensor:
    """``[B, C, n*h, m*w]`` to ``[B, C, H, W]``."""
    return record.as_map(x.permute(0, 2, 3, 1))


def _taken(indices: int | list[int] | None, depth: int) -> list[int]:
    """Indices of the blocks whose output is returned, in timm's order."""
    if indices is None:
        return list(range(depth))
    chosen = range(depth - indices, depth) if isinstance(indices, int) else [i % depth for i in indices]
    return sorted(set(chosen))


def sam_window(core: nn.Module) -> Pair:
    """The window size of the windowed blocks.

    Raises:
        ValueError: If none has one, or they differ.
    """
    sizes = {block.window_size for block in core.blocks if block.window_size}  # type: ignore[union-attr]
    if len(sizes) != 1:
        what = f"windows of {sorted(sizes)}" if sizes else "global attention alone"
        raise ValueError(f"Expected blocks with one size of windows (got {what}).")
    size = sizes.pop()
    return size, size


def sam_changes(core: nn.Module, plan: WindowPlan, record: WindowRecord) -> list[Change]:
    """The changes to the model and its blocks."""
    changes = []
    for index, block in _changed(core, plan):
        site = WindowSite(record, index, plan=plan)
        if plan.clusters is None:
            changes.append(Change(block, site, MergedSamBlock, hooks=[kept_output(block, "attn.qkv")]))
        else:
            changes.append(Change(block, site, ClusteredSamBlock))
    if plan.clusters is not None:
        changes.append(Change(core, WindowSite(record, plan=plan), WindowSam))
        for module, hook in ((core.patch_embed, begin), (core.neck, restore_first)):
            hooks = [Hook(module, hook, before=True)]  # type: ignore[arg-type]
            changes.append(Change(module, WindowSite(record, plan=plan), hooks=hooks))  # type: ignore[arg-type]
    return changes


def check_sam(core: nn.Module, plan: WindowPlan) -> None:
    """Checks the blocks that will be changed.

    Raises:
        ValueError: If windows become clusters and positions are rotary, which fit one window size only; or if the
            forward of a block differs from its two halves.
    """
    blocks = [block for _, block in _changed(core, plan)]
    if plan.clusters is not None and any(block.attn.rope is not None for block in blocks):
        raise ValueError(
            "Expected relative or no positions in attention, for windows of clusters (got rotary ones, made for one "
            "size of windows). Use ToMe, which leaves attention alone."
        )
    for block in {(type(b), bool(b.window_size)): b for b in blocks}.values():
        size = block.window_size
        window = (size, size) if size else None
        x = example(size + 1 if size else 4, size or 4, core.embed_dim)  # type: ignore[arg-type]
        check_window_halves(block, SamBlock, lambda probe, y, w=window: probe.feed(probe.attend(y, w)), x)


def _changed(core: nn.Module, plan: WindowPlan) -> list[tuple[int, Any]]:
    """The blocks that change, with their index; with ToMe only windowed ones."""
    blocks: list[tuple[int, Any]] = list(enumerate(core.blocks))[plan.before : plan.until]  # type: ignore[arg-type]
    return [(i, b) for i, b in blocks if plan.clusters is not None or b.window_size]
