"""Finds transformers heads that need every patch on its grid: by name, and by the call stack."""

from __future__ import annotations

import sys
from types import FrameType

from torch import nn

from tokengraph.adapters.transformers.anatomy import model_name

GRID_HEADS = (  # name endings of models whose head needs every patch
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
LANGUAGE = ("language_model", "text_decoder", "multi_modal_projector", "connector", "qformer")
EACH_BY_ITSELF = (  # models with a language model that take any number of image tokens
    "LlavaModel",
    "VipLlavaModel",
    "VideoLlavaModel",
    "PaliGemmaModel",
    "DeepseekVLModel",
    "JanusModel",
    "Blip2Model",
    "Blip2ForConditionalGeneration",
    "InstructBlipModel",
    "InstructBlipForConditionalGeneration",
)


def needs_grid(module: nn.Module) -> bool:
    """Returns whether the module is a transformers model whose head needs every patch, judged by its name."""
    name = model_name(module)
    return name is not None and name.endswith(GRID_HEADS)


def folds_a_grid(module: nn.Module) -> bool:
    """Returns whether a model with a language model may rearrange image tokens on their grid.

    False for the models in ``EACH_BY_ITSELF``, which take any number of tokens; True for all others.
    """
    return model_name(module) not in EACH_BY_ITSELF


def speaks(module: nn.Module) -> bool:
    """Returns whether a part of this transformers model is a language model, or a projector to one."""
    return model_name(module) is not None and any(isinstance(getattr(module, n, None), nn.Module) for n in LANGUAGE)


def called_by_a_grid_head(part: nn.Module) -> bool:
    """Returns whether a model around ``part``, with a head that needs the grid, has called it.

    An attached model does not know the models around it, so this walks the Python call stack. Any model on it may have
    such a head; of those with a language model the innermost decides.

    Cost: tens of microseconds for a stack of 100 frames; nothing on a device.
    """
    frame: FrameType | None = sys._getframe(1)
    spoken = False
    while frame is not None:
        code = frame.f_code
        if code.co_argcount and code.co_varnames[0] == "self":
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and _matters(owner, spoken) and any(m is part for m in owner.modules()):
                if needs_grid(owner) or folds_a_grid(owner):
                    return True
                spoken = True
        frame = frame.f_back
    return False


def _matters(owner: nn.Module, spoken: bool) -> bool:
    return needs_grid(owner) or (not spoken and speaks(owner))
