"""Finds models whose windows can be coarsened; for other models the error names an alternative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tokengraph.adapters.base import is_a
from tokengraph.attach.changes import Change
from tokengraph.windows.grid import Pair
from tokengraph.windows.layers import SAM, SAM2, VITDET, Layers
from tokengraph.windows.plan import WindowPlan
from tokengraph.windows.record import WindowRecord
from tokengraph.windows.sam import check_sam, sam_changes, sam_window
from tokengraph.windows.swin import check_swin, swin_changes, swin_stage
from tokengraph.windows.swin2 import check_swin2, swin2_changes

SUPPORTED = (
    "timm's VisionTransformerSAM, SwinTransformer or SwinTransformerV2, or SAM, SAM-HQ, SAM 2 or ViTDet of transformers"
)
SAM_OF_TIMM = ("timm.models.vision_transformer_sam", "VisionTransformerSAM")
SWIN = ("timm.models.swin_transformer", "SwinTransformer")
SWIN2 = ("timm.models.swin_transformer_v2", "SwinTransformerV2")
SWIN_ELSEWHERE = (
    "Its blocks are transformers' own. Use timm's SwinTransformer or SwinTransformerV2, or a ViTDet as backbone_config."
)
HINTS = {
    **dict.fromkeys(("SwinModel", "SwinBackbone", "Swinv2Model", "Swinv2Backbone"), SWIN_ELSEWHERE),
    **dict.fromkeys(("DonutSwinModel", "MaskFormerSwinModel", "MaskFormerSwinBackbone"), SWIN_ELSEWHERE),
    "SwinTransformerV2Cr": "Its positions come from a network for one size of windows. Use SwinTransformerV2.",
    "Sam3ViTModel": "Its positions are rotary, made for one size of windows.",
    "ConvNeXt": "It has no windows. Use tg.DynamicSpatial().",
    "VisionTransformer": "It has no windows. Attach the strategy by itself: attach(model, 'tome', 8).",
    "Eva": "It has no windows. Attach the strategy by itself: attach(model, 'tome', 8).",
}


@dataclass(frozen=True)
class Windowed:
    """One model, or one stage of it: its windows, and how it is checked and changed."""

    window: Pair
    check: Callable[[WindowPlan], None]
    changes: Callable[[WindowPlan, WindowRecord], list[Change]]
    blocks: Sequence[nn.Module]


def find_windows(model: nn.Module, stage: int | None) -> tuple[nn.Module, Windowed]:
    """Finds the supported model inside ``model``, or a stage of it, and how to change it.

    Args:
        model: A model, or a wrapper around one.
        stage: Of a Swin; ``None``: the third.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If there is none or several, or the model has no such stage.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model as nn.Module (got {type(model).__name__}).")
    known = (SAM_OF_TIMM, SWIN, SWIN2, *SAM, SAM2, *VITDET)
    found = [m for m in model.modules() if any(is_a(m, *origin) for origin in known)]
    if len(found) > 1:
        raise ValueError(f"Expected one supported model (got {len(found)} inside). Attach to each by itself.")
    if not found:
        other = next((type(m).__name__ for m in model.modules() if type(m).__name__ in HINTS), type(model).__name__)
        hint = HINTS.get(other, "For ConvNeXt use DynamicSpatial; for plain ViTs attach(model, 'tome', 8).")
        raise ValueError(f"Expected {SUPPORTED} for WindowCoarsening (got {other}). {hint}")
    core = found[0]
    if is_a(core, *SWIN) or is_a(core, *SWIN2):
        layer: Any = swin_stage(core, 2 if stage is None else stage)
        window: Pair = layer.blocks[0].window_size
        check, changes = (check_swin2, swin2_changes) if is_a(core, *SWIN2) else (check_swin, swin_changes)
        return layer, Windowed(window, partial(check, layer), partial(changes, layer), list(layer.blocks))
    if not is_a(core, *SAM_OF_TIMM):
        layers = Layers.of(core, stage)
        return core, Windowed(layers.window, layers.check, layers.changes, layers.blocks)
    if stage is not None:
        raise ValueError(f"Expected no stage for {type(core).__name__}, which has a single one (got stage={stage}).")
    blocks: Any = core.blocks
    return core, Windowed(sam_window(core), partial(check_sam, core), partial(sam_changes, core), list(blocks))
