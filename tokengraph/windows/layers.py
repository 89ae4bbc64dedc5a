"""Window coarsening in transformers: the vision encoders of SAM, SAM-HQ and SAM 2, and ViTDet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, ours
from tokengraph.attach.changes import Change, Hook
from tokengraph.windows.block import ClusteredBlock, MapBlock, MergedBlock
from tokengraph.windows.grid import Pair, split, stitch
from tokengraph.windows.plan import WindowPlan, WindowSite, check_window_halves, example, kept_output
from tokengraph.windows.record import WindowRecord
from tokengraph.windows.sam import begin

SAM = (
    ("transformers.models.sam.modeling_sam", "SamVisionEncoder"),
    ("transformers.models.sam_hq.modeling_sam_hq", "SamHQVisionEncoder"),
)
SAM2 = ("transformers.models.sam2.modeling_sam2", "Sam2HieraDetModel")
VITDET = (
    ("transformers.models.vitdet.modeling_vitdet", "VitDetModel"),
    ("transformers.models.vitdet.modeling_vitdet", "VitDetBackbone"),
)


class SamLayer(MapBlock):
    """The halves of ``SamVisionLayer`` and of SAM 2's ``Sam2MultiScaleBlock``."""

    layer_norm1: Any
    layer_norm2: Any
    attn: Any
    mlp: Any

    def attend(self, x: Tensor, window: Pair | None) -> Tensor:
        """Runs the attention half in windows of this size; ``None``: over the whole map."""
        y = self.layer_norm1(x)
        if window is None:
            return x + first(self.attn(hidden_states=y))
        y, cut = split(y, window)
        return x + stitch(first(self.attn(hidden_states=y.unflatten(1, window))).flatten(1, 2), cut)

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half."""
        return x + self.mlp(self.layer_norm2(x))

    def update(self, rows: Tensor) -> Tensor:
        """The MLP half without its residual."""
        return self.mlp(self.layer_norm2(rows))

    def heads(self) -> tuple[int, Any]:
        """Number of heads; keys have no norm."""
        return self.attn.num_attention_heads, None


class DetLayer(MapBlock):
    """The halves of ``VitDetLayer``, whose maps are ``[B, C, H, W]``, and the convolutions behind some of them.

    Between coarse blocks these convolutions see the grid of all clusters, as global attention does.
    """

    norm1: Any
    norm2: Any
    attention: Any
    mlp: Any
    drop_path: Any
    residual: Any
    use_residual_block: bool
    projection = "attention.qkv"

    def attend(self, x: Tensor, window: Pair | None) -> Tensor:
        """Runs the attention half in windows of this size; ``None``: over the whole map."""
        y = self.norm1(x)
        if window is None:
            return x + self.drop_path(self.attention(y)[0])
        y, cut = split(y, window)
        return x + self.drop_path(stitch(self.attention(y.unflatten(1, window))[0].flatten(1, 2), cut))

    def feed(self, x: Tensor) -> Tensor:
        """Runs the MLP half and the convolutions behind it."""
        return self.behind(x + self.drop_path(self.update(x)))

    def update(self, rows: Tensor) -> Tensor:
        """The MLP half without its residual."""
        return self.mlp(self.norm2(rows))

    def dropped(self, update: Tensor) -> Tensor:
        """Stochastic depth on the update of the MLP."""
        return self.drop_path(update)

    def behind(self, x: Tensor) -> Tensor:
        """Runs the convolutions, if the block has them."""
        if not self.use_residual_block:
            return x
        return self.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def heads(self) -> tuple[int, Any]:
        """Number of heads; keys have no norm."""
        return self.attention.num_heads, None

    def as_map(self, x: Tensor) -> Tensor:
        """The block's input, channels last."""
        return x.permute(0, 2, 3, 1)

    def as_stock(self, x: Tensor) -> Any:
        """Channels first, in a tuple."""
        return (x.permute(0, 3, 1, 2),)


class ClusteredSamLayer(ClusteredBlock, SamLayer):
    """A layer of SAM or SAM 2 on clusters."""


class MergedSamLayer(MergedBlock, SamLayer):
    """A windowed layer of SAM or SAM 2 whose MLP runs on merged tokens."""


class ClusteredDetLayer(ClusteredBlock, DetLayer):
    """A layer of ViTDet on clusters."""


class MergedDetLayer(MergedBlock, DetLayer):
    """A windowed layer of ViTDet whose MLP runs on merged tokens."""


@dataclass(frozen=True)
class Layers:
    """The layers of one model, or of one stage of it, and how they are called.

    Attributes:
        core: The model.
        blocks: Its layers on one size of maps.
        first: The number of layers in front of these.
        embedding: The module that begins a run.
        states: The module whose output has hidden states.
        kinds: The mixins for clusters and for merging.
        channels: C.
    """

    core: nn.Module
    blocks: Sequence[Any]
    first: int
    embedding: nn.Module
    states: nn.Module
    kinds: tuple[type[MapBlock], type[MapBlock]]
    channels: int

    @classmethod
    def of(cls, core: Any, stage: int | None) -> Layers:
        """Returns the layers of a supported model.

        Raises:
            ValueError: If the model has no such stage.
        """
        if is_a(core, *SAM2):
            wanted, ends = 2 if stage is None else stage, list(core.stage_ends)
            if not 0 <= wanted < len(ends):
                raise ValueError(f"Expected 0 <= stage < {len(ends)}, the stages of the model (got stage={wanted}).")
            start = ends[wanted - 1] + 1 if wanted else 0
            start += core.blocks[start].dim != core.blocks[start].dim_out  # its attention pools the map
            blocks = list(core.blocks)[start : ends[wanted] + 1]
            kinds = (ClusteredSamLayer, MergedSamLayer)
            return cls(core, blocks, start, core.patch_embed, core, kinds, blocks[0].dim_out if blocks else 0)
        if stage is not None:
            raise ValueError(
                f"Expected no stage for {type(core).__name__}, which has a single one (got stage={stage})."
            )
        channels = int(core.config.hidden_size)
        if any(is_a(core, *origin) for origin in SAM):
            kinds = (ClusteredSamLayer, MergedSamLayer)
            return cls(core, list(core.layers), 0, core.patch_embed, core, kinds, channels)
        kinds = (ClusteredDetLayer, MergedDetLayer)
        return cls(core, list(core.encoder.layer), 0, core.embeddings, core.encoder, kinds, channels)

    @property
    def window(self) -> Pair:
        """``(a, b)`` of the windows.

        Raises:
            ValueError: If none of the layers has windows, or they differ.
        """
        sizes = {int(b.window_size) for b in self.blocks if b.window_size}
        if len(sizes) != 1:
            what = f"windows of {sorted(sizes)}" if sizes else "global attention alone"
            raise ValueError(f"Expected blocks with one size of windows (got {what} in {type(self.core).__name__}).")
        size = sizes.pop()
        return size, size

    def changed(self, plan: WindowPlan) -> list[tuple[int, Any]]:
        """The layers that change, with their index; with ToMe only windowed ones."""
        blocks = list(enumerate(self.blocks))[plan.before : plan.until]
        return [(i, b) for i, b in blocks if plan.clusters is not None or b.window_size]

    def check(self, plan: WindowPlan) -> None:
        """Raises ValueError if the forward of a layer differs from its two halves."""
        halves: Any = next(base for base in self.kinds[0].__bases__ if base is not ClusteredBlock)

        def run(probe: Any, y: Tensor, window: Pair | None) -> Any:
            return probe.as_stock(probe.feed(probe.attend(probe.as_map(y), window)))

        kinds = {(type(b), b.window_size, getattr(b, "use_residual_block", False)): b for _, b in self.changed(plan)}
        for block in kinds.values():
            size = int(block.window_size)
            window = (size, size) if size else None
            x = example(size + 1 if size else 4, size or 4, self.channels)
            x = x.permute(0, 3, 1, 2) if halves is DetLayer else x
            check_window_halves(block, halves, lambda probe, y, w=window: run(probe, y, w), x)

    def changes(self, plan: WindowPlan, record: WindowRecord) -> list[Change]:
        """The changes to the model and its layers."""
        clustered, merged = self.kinds
        changes = []
        for index, block in self.changed(plan):
            site = WindowSite(record, index, plan=plan)
            hooks = [] if plan.clusters is not None else [kept_output(block, merged.projection)]
            changes.append(Change(block, site, clustered if plan.clusters is not None else merged, hooks=hooks))
        if plan.clusters is not None:
            mark = WindowSite(record, self.first, plan=plan)
            changes.append(Change(self.embedding, mark, hooks=[Hook(self.embedding, begin, before=True)]))
            mark = WindowSite(record, self.first, plan=plan)
            changes.append(Change(self.states, mark, hooks=[Hook(self.states, restore_states)]))
        return changes


@ours
def restore_states(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: reconstructs hidden states between coarse layers, and maps that SAM-HQ reads of global ones."""
    site: WindowSite = module.__dict__[SITE]
    plan, record, ahead = site.plan, site.trace, site.index
    if plan.nothing or record.clusters is None:
        return output
    last = bool(getattr(module, "layer", None))  # maps of ViTDet have channels first

    def whole(states: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        coarse = range(ahead + plan.before + 1, ahead + plan.until)
        return tuple(h if h is None or i not in coarse else _restored(record, h, last) for i, h in enumerate(states))

    if isinstance(output, tuple):
        depth = ahead + record.depth
        return tuple(whole(p) if isinstance(p, tuple) and len(p) > depth else p for p in output)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = whole(output.hidden_states)
    if getattr(output, "intermediate_embeddings", None) is not None:
        layers = [i for i, b in enumerate(module.layers) if not b.window_size]  # type: ignore[union-attr,arg-type]
        pairs = zip(layers, output.intermediate_embeddings, strict=True)
        coarse = range(plan.before, plan.until - 1)
        output.intermediate_embeddings = [_restored(record, h, False) if i in coarse else h for i, h in pairs]
    return output


def _restored(record: WindowRecord, h: Tensor, channels_first: bool) -> Tensor:
    """A map of clusters at full resolution, in its own order of axes."""
    if h.dim() != 4:
        return h
    whole = record.as_map(h.permute(0, 2, 3, 1) if channels_first else h)
    return whole if channels_first else whole.permute(0, 2, 3, 1)


def first(output: Any) -> Tensor:
    """The first of a tuple; a tensor itself."""
    return output[0] if isinstance(output, tuple) else output
