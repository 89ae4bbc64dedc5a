"""Finds the parts of a transformers vision model, and tells its kind."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

BACKBONE = ("transformers.backbone_utils", "BackboneMixin", "transformers.utils.backbone_utils")
LAYERS = ("layers", "layer", "encoder.layers", "encoder.layer", "model.layer", "model.layers")
SIGLIP2 = "transformers.models.siglip2.modeling_siglip2"
BEIT = (
    ("transformers.models.beit.modeling_beit", "BeitLayer"),
    ("transformers.models.data2vec.modeling_data2vec_vision", "Data2VecVisionLayer"),
)


def model_name(module: nn.Module) -> str | None:
    """Name of the module's transformers class, also if the user subclassed it; ``None``: it has none."""
    return _model_name_of(type(module))


@lru_cache(maxsize=1024)
def _model_name_of(kind: type) -> str | None:
    names = (c.__name__ for c in kind.__mro__ if c.__module__.startswith("transformers.models."))
    return next((name for name in names if not name.endswith("PreTrainedModel")), None)


def is_vision_model(model: nn.Module) -> bool:
    """Returns whether it is a model of transformers with patch embeddings and a list of layers."""
    ours = any(c.__module__.startswith("transformers.models.") for c in type(model).__mro__)
    return ours and patches_of(getattr(model, "embeddings", None)) is not None and layers_of(model) is not None


def is_naflex(model: nn.Module) -> bool:
    """Returns whether it is SigLIP 2's vision model, which takes patches of images of any shape."""
    return is_vision_model(model) and any(c.__module__ == SIGLIP2 for c in type(model).__mro__)


def is_beit(model: nn.Module) -> bool:
    """Returns whether its layers may add a relative position bias over all tokens: BEiT and Data2Vec."""
    layers = layers_of(model)
    return layers is not None and any((c.__module__, c.__name__) in BEIT for c in type(layers[0]).__mro__)


def is_older(model: nn.Module) -> bool:
    """Returns whether attention holds its projections one module deeper, as ``attention.query``, and takes no mask."""
    layers: Any = layers_of(model)
    return hasattr(getattr(getattr(layers[0], "attention", None), "attention", None), "query")


def has_scales(model: nn.Module) -> bool:
    """Returns whether layers hold their scales as the parameters ``lambda_1`` and ``lambda_2``, as InternVL's do."""
    layers: Any = layers_of(model)
    scales = (getattr(layers[0], name, None) for name in ("lambda_1", "lambda_2"))
    return all(isinstance(scale, nn.Parameter) for scale in scales)


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The model's list of layers, under any of the paths in ``LAYERS``; ``None``: there is none."""
    for path in LAYERS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    return None


def holder_of(model: nn.Module) -> nn.Module | None:
    """The part of the model that runs the layers; ``None``: the model itself does."""
    layers = layers_of(model)
    held = (part for part in model.children() if part is not layers and layers_of(part) is layers)
    return next(held, None)


def patches_of(embeddings: Any) -> nn.Module | None:
    """The layer that turns pixels into patches: a convolution, or a projection inside a module of its own."""
    found = getattr(embeddings, "patch_embeddings", None)
    found = getattr(embeddings, "patch_embedding", None) if found is None else found
    found = embeddings if found is None and is_hybrid(embeddings) else found
    found = getattr(found, "projection", found)
    return found if isinstance(found, nn.Conv2d | nn.Linear) else None


def is_hybrid(embeddings: Any) -> bool:
    """Returns whether a convolutional backbone makes the features that are projected, as in DPT's hybrid."""
    return isinstance(getattr(embeddings, "backbone", None), nn.Module) and hasattr(embeddings, "projection")


def class_token_of(embeddings: Any) -> Any:
    """The class token's parameter, if there is one."""
    found = getattr(embeddings, "cls_token", None)
    return getattr(embeddings, "class_embedding", None) if found is None else found
