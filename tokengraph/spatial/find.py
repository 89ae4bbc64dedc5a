"""Finds the models that DynamicSpatial supports."""

from __future__ import annotations

from torch import nn

from tokengraph.spatial.convnext import ConvNeXtFamily
from tokengraph.spatial.family import Family
from tokengraph.spatial.swin import SwinFamily

SUPPORTED = "timm's ConvNeXt (versions 1 and 2) and SwinTransformer (version 1)"


def find_family(model: nn.Module) -> tuple[nn.Module, type[Family]]:
    """Finds the supported model inside ``model``, and its family.

    Raises:
        ImportError: If timm is not installed.
        TypeError: If ``model`` is no module.
        ValueError: If there is none or several, or the norm of a block does not act position by position.
    """
    from tokengraph.compat import timm

    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model as nn.Module (got {type(model).__name__}).")
    classes = {timm.models.ConvNeXt: ConvNeXtFamily, timm.models.SwinTransformer: SwinFamily}
    found = [(m, family) for m in model.modules() for known, family in classes.items() if isinstance(m, known)]
    if len(found) > 1:
        raise ValueError(f"Expected one supported model (got {len(found)} inside). Attach to each by itself.")
    if not found:
        raise ValueError(
            f"Expected {SUPPORTED} for DynamicSpatial (got {type(model).__name__}). For plain ViTs use tg.DynamicViT()."
        )
    core, family = found[0]
    for block in family.stage(core).blocks:  # type: ignore[union-attr]
        if problem := family.check(block):
            raise ValueError(f"Expected blocks whose norm acts position by position (got {problem}). Use {SUPPORTED}.")
    return core, family
