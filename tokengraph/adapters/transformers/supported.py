"""Checks that a transformers model works with fewer tokens; refuses others by name."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.transformers.anatomy import BACKBONE, holder_of, is_naflex, model_name
from tokengraph.adapters.transformers.callers import LANGUAGE, needs_grid, speaks

CORES = ("Model", "Backbone", "VisionTransformer", "ModelWithProjection")
AROUND = (
    "VisionModel",
    "VisionTransformer",
    "Backbone",
    "ModelWithProjection",
    "ForImageClassification",
    "ForImageClassificationWithTeacher",
    "BeitForSemanticSegmentation",
    "Data2VecVisionForSemanticSegmentation",
)
BEHIND = (
    "connector",
    "merger",
    "projector",
    "multi_modal_projector",
    "resampler",
    "downsample",
)  # parts that rearrange tokens on their grid
ATTENTIONS = (None, "eager", "sdpa")
SERVED_WHOLE = (  # heads on the grid that read only tokens and hidden states of the inner model
    "DPTForDepthEstimation",
    "DPTForSemanticSegmentation",
    "ViTForMaskedImageModeling",
    "DeiTForMaskedImageModeling",
    "BeitForMaskedImageModeling",
    "ViTMAEForPreTraining",
    "CLIPSegForImageSegmentation",
    "OwlViTForObjectDetection",
    "Owlv2ForObjectDetection",
)
HINT = "Attach to the vision model inside it with lift=True, which returns every patch. The model was not changed."


def check_around(model: nn.Module, core: nn.Module) -> None:
    """Raises if ``core``, or a transformers model around it in ``model``, needs all its tokens.

    A head that lays tokens out on a grid, cuts tokens off the end or counts them would give wrong results silently. The
    user's own modules are not checked.

    Raises:
        ValueError: If one does; the message names it.
    """
    name = model_name(core)
    if name is not None and not name.endswith(CORES):
        raise ValueError(
            f"Expected a vision model without a head that needs the grid (got {name}, whose layers are its own: "
            "there is no vision model inside it to attach to)."
        )
    _check_core(core, name or type(core).__name__)
    around = [m for m in model.modules() if m is not core and any(part is core for part in m.modules())]
    if any(is_a(m, *BACKBONE) for m in (core, *around)):
        return  # modules around a backbone get full feature maps
    for module in around:
        name = model_name(module)
        if name is None or name in SERVED_WHOLE or _leaves_tokens_alone(module, name) or reads_images(module):
            continue
        raise ValueError(
            f"Expected a vision model, its classifier, or a dual encoder such as CLIPModel (got {name}, whose head may "
            f"need the tokens on their grid). {HINT}"
        )


def _leaves_tokens_alone(module: nn.Module, name: str) -> bool:
    """Returns whether it is a tower, a classifier or a dual encoder, without a language model or a grid part."""
    if any(isinstance(getattr(module, part, None), nn.Module) for part in (*LANGUAGE, *BEHIND)):
        return False
    pairs = name.endswith("Model") and hasattr(module, "logit_scale") and not hasattr(module, "multimodal_model")
    return pairs or name.endswith(AROUND)


def reads_images(module: nn.Module) -> bool:
    """Returns whether it is a vision-language model, whose language part has a place for each of the tower's tokens."""
    encodes = any(hasattr(module, f"get_{kind}_features") for kind in ("image", "video"))
    return encodes and any(speaks(part) for part in module.modules())


def wants_whole(model: nn.Module, core: nn.Module) -> bool:
    """Returns whether a head or a language model around ``core`` in ``model`` needs every patch."""
    around = (m for m in model.modules() if m is not core and (needs_grid(m) or reads_images(m)))
    return any(part is core for m in around for part in m.modules())


def _check_core(core: nn.Module, name: str) -> None:
    embeddings: Any = core.embeddings
    if getattr(embeddings, "detection_tokens", None) is not None:
        raise ValueError(f"Expected patches to be the last tokens (got detection tokens behind them in {name}).")
    if folding := [part for part in BEHIND if isinstance(getattr(core, part, None), nn.Module)]:
        raise ValueError(f"Expected a vision model that leaves tokens as they are (got {name} with a {folding[0]}).")
    takes = inspect.signature(core.forward).parameters
    if "input_values" in takes or not (is_naflex(core) or getattr(core.config, "image_size", None)):
        raise ValueError(f"Expected a model of images (got {name}, which takes other input, or has no image_size).")
    if int(getattr(core.config, "num_windows", 1) or 1) > 1:
        raise ValueError(f"Expected attention over the whole image (got windows in {name}).")
    if is_a(core, *BACKBONE) and holder_of(core) is None:
        raise ValueError(f"Expected a backbone with its layers in a part of their own (got {name}). Use the Model.")


def check_attention(attention: Any) -> None:
    """Raises unless the attention's implementation adds a mask to its logits.

    Args:
        attention: The module that has the ``config``.

    Raises:
        ValueError: For others than ``"eager"`` and ``"sdpa"``.
    """
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    if implementation not in ATTENTIONS:
        raise ValueError(
            f"Expected attn_implementation='sdpa' or 'eager' (got {implementation!r} in {type(attention).__name__}), "
            'which take float masks. Call model.set_attn_implementation("sdpa").'
        )
