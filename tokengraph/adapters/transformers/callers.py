"""Heads of transformers that lay tokens out on a grid: by name, and whether one of them has called the model."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

from tokengraph.adapters.transformers.anatomy import origin

GRID_HEADS = (  # ends of the names of models whose head needs every patch of the model inside
    "ForDepthEstimation",
    "ForSemanticSegmentation",
    "ForUniversalSegmentation",
    "ForInstanceSegmentation",
    "ForImageSegmentation",
    "ForMaskedImageModeling",
    "ForPreTraining",
    "ForObjectDetection",
    "ForImageMatting",
    "ForPoseEstimation",
)


def needs_grid(module: nn.Module) -> bool:
    """Whether the module is a model of transformers with a head that needs every patch, by its name."""
    name = origin(module)
    return name is not None and name.endswith(GRID_HEADS)


def called_by_a_grid_head(part: nn.Module) -> bool:
    """Whether a model with a head that needs the grid is running, and called ``part``, which lies in it.

    A model that is attached by itself cannot know what it lies in, so the frames below are asked.

    Cost: tens of microseconds for a stack of 100 frames, measured; on no device.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and needs_grid(owner) and any(m is part for m in owner.modules()):
                return True
        frame = frame.f_back
    return False
