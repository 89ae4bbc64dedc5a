"""Finds the mean, standard deviation and channels of the images that a model expects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from tokengraph.adapters import find_adapter

Triple = tuple[float, float, float]
HALF: Triple = (0.5, 0.5, 0.5)
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: tuple[Triple, Triple] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
OF_CLIP = (
    *("aimv2", "aimv2_vision_model", "altclip", "altclip_vision_model", "blip", "blip_vision_model"),
    *("chinese_clip", "chinese_clip_vision_model", "clip", "clip_vision_model", "git", "git_vision_model"),
    *("groupvit", "groupvit_vision_model", "llava", "metaclip_2", "metaclip_2_vision_model", "mlcd"),
    *("mlcd_vision_model", "owlvit", "owlvit_vision_model"),
)
OF_IMAGENET = (
    *("clipseg", "clipseg_vision_model", "deit", "depth_anything", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    *("eomt", "ijepa", "sam", "sam_vision_model", "vit_mae", "vit_msn", "vitpose", "yolos"),
)
BY_TYPE = dict.fromkeys(OF_CLIP, CLIP) | dict.fromkeys(OF_IMAGENET, IMAGENET)  # by transformers' model type; else 0.5
FILES = ("preprocessor_config.json", "processor_config.json")


def find_mean_std(model: nn.Module, processor: Any = None) -> tuple[Triple, Triple]:
    """Finds the mean and standard deviation that normalise a model's images.

    It searches from the outermost module inwards, and takes the first of: ``preprocess_cfg`` (open_clip),
    ``pretrained_cfg`` (timm), the processor file of transformers beside the weights or in the hub's cache (it downloads
    nothing), the values of most published weights of that transformers model type, or torchvision's ImageNet values. If
    it finds none, mean and deviation are 0.5.

    Args:
        model: Any module.
        processor: A processor of transformers, or a dict with ``mean`` and ``std``; if given, it decides.

    Returns:
        Mean and deviation, three numbers each, for images in [0, 1].

    Raises:
        TypeError: If ``processor`` has no mean and deviation.
        ValueError: If several inner models disagree.

    Cost: a walk over the modules; for models of transformers, reading of small local files.
    """
    if processor is not None:
        found = _of_processor(processor)
        if found is None:
            raise TypeError(
                "Expected processor with image_mean and image_std, or a dict with mean and std "
                f"(got {type(processor).__name__})."
            )
        return found
    inside = _inside(model)
    if len(inside) > 1:
        listed = ", ".join(f"{name} with mean {value[0]}" for value, name in inside.items())
        raise ValueError(
            f"Expected one mean and deviation (got {len(inside)}: {listed}). Give the inner model that takes the "
            "images, or processor={'mean': ..., 'std': ...}."
        )
    return next(iter(inside), (HALF, HALF))


def input_channels(model: nn.Module) -> int:
    """Returns the number of channels of the model's images; 3 if it cannot be found."""
    try:
        core, adapter = find_adapter(model)
    except ValueError:  # no adapter, or several; in other models the first convolution need not take images
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        return 1 if first is not None and first.in_channels == 1 else 3
    embedding: Any = adapter.embedding(core)
    for module in embedding.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return module.in_channels
    named = (getattr(embedding, "in_chans", None), getattr(getattr(core, "config", None), "num_channels", None))
    return next((n for n in named if isinstance(n, int)), 3)


def _inside(module: nn.Module) -> dict[tuple[Triple, Triple], str]:
    """Returns the values of the module, or else of the modules inside it, each with the name of a class that has it."""
    own = _own(module)
    if own is not None:
        return {own: type(module).__name__}
    found: dict[tuple[Triple, Triple], str] = {}
    for child in module.children():
        for value, name in _inside(child).items():
            found.setdefault(value, name)
    return found


def _own(module: Any) -> tuple[Triple, Triple] | None:
    for key in ("preprocess_cfg", "pretrained_cfg", "default_cfg"):
        found = _of_config(getattr(module, key, None))
        if found is not None:
            return found
    config = getattr(module, "config", None)
    kind = getattr(config, "model_type", None)
    if isinstance(kind, str):
        name = str(getattr(config, "name_or_path", None) or "")
        return _of_file(name) or BY_TYPE.get(kind) or (IMAGENET if kind == "vit" and "dino" in name.lower() else None)
    if type(module).__module__.startswith("torchvision.models."):
        return IMAGENET
    return None


def _of_config(config: Any) -> tuple[Triple, Triple] | None:
    """Reads timm's or open_clip's dict (or dataclass); if it has only mean or deviation, the other is 0.5."""
    get = config.get if isinstance(config, Mapping) else partial(_attribute, config)
    mean, std = get("mean"), get("std")
    return None if mean is None and std is None else (_triple(mean or HALF), _triple(std or HALF))


def _of_processor(processor: Any) -> tuple[Triple, Triple] | None:
    """Reads mean and deviation from a processor, or from the dict in its file."""
    get = processor.get if isinstance(processor, Mapping) else partial(_attribute, processor)
    if get("image_processor") is not None:
        return _of_processor(get("image_processor"))
    if get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = get("image_mean"), get("image_std")
    return (_triple(mean), _triple(std)) if mean is not None and std is not None else _of_config(processor)


def _attribute(thing: Any, name: str) -> Any:
    return getattr(thing, name, None)


def _of_file(name: str) -> tuple[Triple, Triple] | None:
    """Reads the processor file in a folder, or in the hub's cache of weights of this name."""
    for file in FILES:
        path = Path(name) / file if Path(name).is_dir() else _cached(name, file) if name else None
        try:
            found = _of_processor(json.loads(Path(path).read_text())) if path is not None else None
        except (OSError, TypeError, ValueError):  # missing, or not a processor file
            continue
        if found is not None:
            return found
    return None


def _cached(name: str, file: str) -> str | None:
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # not a valid repository name
        return None
    return found if isinstance(found, str) else None


def _triple(values: Any) -> Triple:
    numbers = [float(v) for v in values] if isinstance(values, list | tuple) else [float(values)]
    first, second, third = numbers * 3 if len(numbers) == 1 else numbers
    return first, second, third
