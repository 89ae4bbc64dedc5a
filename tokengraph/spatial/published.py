"""Renames checkpoints of the published code to timm's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tokengraph.kinds import explains

RENAMES = {
    "convnext": (
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.", "stages."),  # numbered like the stage after it
        (r"^stages\.(\d+)\.(\d+)\.(weight|bias)$", r"stages.\1.downsample.\2.\3"),
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv", ".mlp.fc"),
        (r"^norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ),
    "swin": ((r"^head\.(weight|bias)$", r"head.fc.\1"),),
}
BUFFERS = ("relative_position_index", "attn_mask")  # timm makes them itself


@explains
def published_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a published state dict of a sparsified ConvNeXt or Swin, for a timm model with DynamicSpatial attached.

    1x1 convolutions of the predictors become linear layers. Names that are already timm's stay.

    Args:
        state: The published state dict.

    Example:
        >>> import torch
        >>> list(published_weights({"downsample_layers.0.0.bias": torch.zeros(1), "stages.2.1.gamma": torch.zeros(1)}))
        ['stem.0.bias', 'stages.2.blocks.1.gamma']
    """
    if any(name.startswith("downsample_layers.") for name in state):
        rules = RENAMES["convnext"]
    elif "layers.0.downsample.reduction.weight" in state:
        rules = RENAMES["swin"]
    else:
        rules = ()
    found = {}
    for name, value in state.items():
        if name.endswith(BUFFERS):
            continue
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if rules is RENAMES["swin"]:  # ends a stage there, begins the next one in timm
            name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
        found[name] = value.flatten(1) if "score_predictor" in name and value.dim() == 4 else value
    return found
