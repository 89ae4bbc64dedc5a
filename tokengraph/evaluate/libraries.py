"""Loads models by name from timm, transformers, open_clip and torchvision, with their checkpoints' preprocessing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokengraph.evaluate.config import DataConfig, config_of_model, of_timm
from tokengraph.evaluate.resolution import resized
from tokengraph.io.hub import patient_hub
from tokengraph.io.mean_std import find_mean_std
from tokengraph.optional import optional

TASKS = ("ImageClassification", "SemanticSegmentation")  # supported heads of transformers


@dataclass(frozen=True)
class Found:
    """A library's model: a function that builds it at a size, its preprocessing, and the origin of its weights."""

    build: Callable[[int | None], nn.Module]
    config: DataConfig
    weights: str


def _reached(what: str, load: Callable[[], Any]) -> Any:
    """Returns the result of a load; turns any error of hub, cache or file into one line."""
    try:
        with torch.random.fork_rng(devices=[]):  # random weights are repeatable and leave the caller's generator alone
            torch.default_generator.manual_seed(0)
            with patient_hub():
                return load()
    except ImportError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"Expected weights of {what} in the hub or its cache (got {reason[:200].rstrip('.')}). "
            "Give a checkpoint file (--checkpoint), or random weights (--random-weights) to try the command out."
        ) from error


def _suggestion(name: str, known: Sequence[str]) -> str:
    """Returns a hint: the shortest name that begins like this one, or else the most similar one, or nothing."""
    longer = sorted((each for each in known if each.startswith(name)), key=len) if name else []
    near = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    return f" Did you mean {near[0]!r}?" if near else ""


def of_timm_name(name: str, pretrained: bool, classes: int | None = None) -> Found:
    """Finds a timm model; ``create_model`` resamples the checkpoint's positions to the size."""
    from tokengraph.compat import timm

    if not timm.is_model(name.removeprefix("hf-hub:")) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        hint = _suggestion(name, timm.list_models()) or " See timm.list_models()."
        raise ValueError(f"Expected a model name that timm knows (got {name!r}).{hint}")

    def build(size: int | None) -> nn.Module:
        def load() -> nn.Module:
            given = {"img_size": size, "num_classes": classes}
            given = {key: value for key, value in given.items() if value is not None}
            return timm.create_model(name, pretrained=pretrained, **given).eval()

        return _reached(name, load)

    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict()) if timm.is_model(name) else None
    found = of_timm(config) if config is not None else config_of_model(build(None))
    return Found(build, found, "pretrained (timm)" if pretrained else "random")


def _own_head(classes: int | None) -> None:
    if classes is not None:
        raise ValueError("Expected num_classes for models of timm and torchvision only (got it for another).")


def of_transformers_name(name: str, pretrained: bool, classes: int | None = None) -> Found:
    """Finds a transformers repository or folder: its classifier or segmenter, else the model without a head."""
    from tokengraph.compat import transformers

    _own_head(classes)

    def load() -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(name)
        heads = " ".join(getattr(config, "architectures", None) or [])
        task = next((task for task in TASKS if f"For{task}" in heads), None)
        kind = transformers.AutoModel if task is None else getattr(transformers, f"AutoModelFor{task}")
        model = kind.from_pretrained(name) if pretrained else kind.from_config(config)
        return (model if task else getattr(model, "vision_model", model)).eval()  # the vision tower of CLIP and SigLIP

    def build(size: int | None) -> nn.Module:
        model = _reached(name, load)
        return model if size is None else resized(model, size)

    config = config_of_model(build(None))
    try:
        with patient_hub():
            processor = transformers.AutoImageProcessor.from_pretrained(name)
    except Exception:  # no such file, or no package for it: use the model's own config
        return Found(build, config, f"{name} (transformers)")
    return Found(build, _of_processor(processor, config), f"{name} (transformers)")


def _of_processor(processor: Any, config: DataConfig) -> DataConfig:
    """Reads size, crop, filter, mean and standard deviation from a processor of transformers."""
    size, crop = dict(getattr(processor, "size", {}) or {}), dict(getattr(processor, "crop_size", {}) or {})
    crops = bool(getattr(processor, "do_center_crop", False)) and "height" in crop
    side = crop["height"] if crops else size.get("height", size.get("shortest_edge", config.size))
    pct = side / size["shortest_edge"] if crops and size.get("shortest_edge", 0) >= side else 1.0
    names = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
    filters = names.get(int(getattr(processor, "resample", None) or 3), "bicubic")
    mode = "squash" if not crops and "height" in size else "center"
    mean, std = find_mean_std(nn.Identity(), processor)
    return DataConfig(int(side), mean, std, filters, pct, mode, type(processor).__name__)


def of_open_clip_name(name: str, pretrained: bool, classes: int | None = None) -> Found:
    """Finds the vision tower of ``NAME:TAG`` in open_clip; without a tag its first known one."""
    open_clip = optional("open_clip")
    _own_head(classes)
    architecture, _, tag = name.partition(":")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained and not (tag or tags):
        raise ValueError(f"Expected an open_clip model with weights (got {name!r}). See open_clip.list_pretrained().")
    tag = tag or (tags[0] if tags else "")

    def build(size: int | None) -> nn.Module:
        def load() -> nn.Module:
            model = open_clip.create_model(architecture, pretrained=tag if pretrained else None)
            return model.visual.eval()

        tower = _reached(name, load)
        return tower if size is None else resized(tower, size)

    return Found(build, config_of_model(build(None)), f"{tag} (open_clip)" if pretrained else "random")


def of_torchvision_name(name: str, pretrained: bool, classes: int | None = None) -> Found:
    """Finds a torchvision classifier with its default weights and their transforms."""
    from tokengraph.compat import torchvision

    models = torchvision.models
    if name not in models.list_models():
        hint = _suggestion(name, models.list_models())
        raise ValueError(f"Expected a model name that torchvision knows (got {name!r}).{hint}")
    weights = models.get_model_weights(name).DEFAULT

    def build(size: int | None) -> nn.Module:
        given = {"weights": weights if pretrained else None} | ({} if classes is None else {"num_classes": classes})
        model = _reached(name, lambda: models.get_model(name, **given).eval())
        return model if size is None else resized(model, size)

    how = weights.transforms()
    side = how.crop_size[0]
    config = DataConfig(
        side,
        tuple(how.mean),
        tuple(how.std),
        how.interpolation.value,
        side / how.resize_size[0],
        source="torchvision's transforms",
    )
    return Found(build, config, f"{weights} (torchvision)" if pretrained else "random")


LIBRARIES: dict[str, Callable[[str, bool, int | None], Found]] = {
    "timm": of_timm_name,
    "transformers": of_transformers_name,
    "open_clip": of_open_clip_name,
    "torchvision": of_torchvision_name,
}
