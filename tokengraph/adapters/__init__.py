"""Adapters tell ``attach`` how the models of a family are built: one folder per framework, one file per family."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.encoder_layers import EncoderLayers
from tokengraph.adapters.open_clip import OpenClipViT
from tokengraph.adapters.timm.beit import TimmBeit
from tokengraph.adapters.timm.eva import TimmEva
from tokengraph.adapters.timm.hiera import TimmHiera
from tokengraph.adapters.timm.naflex import TimmNaFlex
from tokengraph.adapters.timm.qwen3 import TimmQwen3
from tokengraph.adapters.timm.vit import TimmViT
from tokengraph.adapters.torchvision import TorchvisionViT
from tokengraph.adapters.transformers.beit import OlderTransformersBeit, TransformersBeit
from tokengraph.adapters.transformers.eomt import TransformersEomt
from tokengraph.adapters.transformers.internvl import TransformersInternVL
from tokengraph.adapters.transformers.naflex import TransformersNaFlex
from tokengraph.adapters.transformers.older import OlderTransformersViT
from tokengraph.adapters.transformers.pose import TransformersPose
from tokengraph.adapters.transformers.spectrogram import TransformersSpectrogram
from tokengraph.adapters.transformers.video import TransformersVideoMAE, TransformersVivit
from tokengraph.adapters.transformers.vit import TransformersViT
from tokengraph.adapters.transformers.vjepa import TransformersJepa
from tokengraph.adapters.transformers.yolos import TransformersYolos

ADAPTERS: list[Adapter] = [  # the first that serves a model does; those of one model stand before general ones
    TimmViT(),
    TimmEva(),
    TimmQwen3(),
    TimmBeit(),
    TimmHiera(),
    TorchvisionViT(),
    OpenClipViT(),
    TransformersEomt(),
    TransformersYolos(),
    TransformersPose(),
    TransformersSpectrogram(),
    TransformersVivit(),
    TransformersVideoMAE(),
    TransformersJepa(),
    TransformersViT(),
    TransformersInternVL(),
    TransformersBeit(),
    OlderTransformersBeit(),
    OlderTransformersViT(),
    TransformersNaFlex(),
    TimmNaFlex(),
]


def find_adapter(model: nn.Module, adapter: Adapter | None = None) -> tuple[nn.Module, Adapter]:
    """Finds the supported model: ``model`` itself, or the only one inside it, as in a wrapper or a segmenter.

    Args:
        model: Any module.
        adapter: Adapter of ``model`` itself, for a model that no adapter in ``ADAPTERS`` serves, such as an
            :class:`EncoderLayers`; ``None``: asks those in turn.

    Returns:
        The model that has the blocks, and its adapter.

    Raises:
        TypeError: If ``model`` is no module, or ``adapter`` no adapter.
        ValueError: If no model is supported, several are inside, or ``adapter`` does not serve ``model``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model as nn.Module (got {type(model).__name__}).")
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "Expected a model outside nn.DataParallel (got one inside). Its replicas would share one record. "
            "Use DistributedDataParallel."
        )
    if adapter is not None:
        _check_adapter(adapter)
        if not adapter.serves(model):
            given = f" with {vars(adapter)}" if vars(adapter) else ""
            raise ValueError(
                f"Expected an adapter that serves {type(model).__name__} (got {type(adapter).__name__}{given}, whose "
                "serves() is False). Give it a model of its family, or the paths of this model's parts."
            )
        return model, adapter
    fits = [module for module in model.modules() if type(module).__name__ not in UNFIT]
    found = [(module, first) for module in fits if (first := _first_to_serve(module)) is not None]
    if found and (len(found) == 1 or found[0][0] is model):
        return found[0]
    if found:
        names = ", ".join(type(m).__name__ for m, _ in found)
        raise ValueError(f"Expected one supported model (got {len(found)} inside: {names}). Attach to each by itself.")
    if (elsewhere := _same_weights(model)) is not None:
        raise ValueError(elsewhere)
    if (unfit := next((n for m in model.modules() if (n := type(m).__name__) in UNFIT), None)) is not None:
        inside = "" if unfit == type(model).__name__ else f" with a {unfit}"
        raise ValueError(f"Expected a supported model (got {type(model).__name__}{inside}). {UNFIT[unfit]}")
    supported = ", ".join(a.family for a in ADAPTERS)
    blocks = sorted({type(m).__name__ for m in model.modules() if "block" in type(m).__name__.lower()})
    seen = f" with blocks {', '.join(blocks)}" if blocks else ""
    raise ValueError(
        f"Expected a supported model (got {type(model).__name__}{seen}). Supported: {supported}. "
        "Windowed and hierarchical models (Swin, ConvNeXt, MViT) and cross-covariance attention (XCiT) need the whole "
        "grid of tokens. Use tg.WindowCoarsening(...) for Swin, SAM and ViTDet, tg.DynamicSpatial() for Swin and "
        "ConvNeXt, attach(..., adapter=tg.adapters.EncoderLayers(...)) for your own model with nn.TransformerEncoder, "
        "and an Adapter of your own for another plain ViT (docs/adding_a_family.md). To cluster the features of any "
        "model use tg.TokenGraph.from_tokens."
    )


SWIN = (
    "Swin of transformers attends in shifted windows of a whole grid. Take timm's SwinTransformer with "
    "tg.WindowCoarsening(...) or tg.DynamicSpatial(), or give a detector or segmenter a plain backbone: "
    "backbone_config=Dinov2Config(...), or VitDetConfig(...) with tg.WindowCoarsening(...)."
)
UNFIT = {  # models that no adapter can serve, by class: why, and what to use
    "TimesformerModel": (
        "Its layers attend along time and space in turn, on the whole grid of every frame. Use VideoMAE, ViViT or "
        "V-JEPA 2, whose layers see all tubes at once."
    ),
    "MultiScaleVit": (
        "MViTv2 pools keys and values by convolutions on the grid in every block. Use timm's Hiera, or a plain ViT."
    ),
    "Sam3ViTModel": (
        "Its rotary positions are tables for one size of windows and one grid. Use SAM or SAM 2 with "
        "tg.WindowCoarsening(...)."
    ),
    **dict.fromkeys(("SwinModel", "SwinBackbone", "Swinv2Model", "Swinv2Backbone"), SWIN),
    **dict.fromkeys(("DonutSwinModel", "MaskFormerSwinModel", "MaskFormerSwinBackbone"), SWIN),
}

ELSEWHERE = {  # original code of papers, by module: its name, and libraries that load the same weights
    "dinov2.models": (
        "the original DINOv2 of torch.hub",
        'timm.create_model("vit_small_patch14_dinov2.lvd142m", pretrained=True) (with registers: '
        '"vit_small_patch14_reg4_dinov2.lvd142m"), or transformers.AutoModel.from_pretrained("facebook/dinov2-small")',
    ),
    "dinov3.models": (
        "the original DINOv3 of torch.hub",
        'timm.create_model("vit_small_patch16_dinov3.lvd1689m", pretrained=True), or '
        'transformers.AutoModel.from_pretrained("facebook/dinov3-vits16-pretrain-lvd1689m")',
    ),
    "clip.model": (
        "openai/CLIP",
        'open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai"), '
        'timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", pretrained=True), or '
        'transformers.CLIPModel.from_pretrained("openai/clip-vit-base-patch32")',
    ),
}


def _check_adapter(adapter: Any) -> None:
    """Raises unless this is an adapter whose class names its family and has a mixin for blocks."""
    if not isinstance(adapter, Adapter):
        a_class = isinstance(adapter, type) and issubclass(adapter, Adapter)
        hint = f"Give an instance: {adapter.__name__}()." if a_class else "For example EncoderLayers(...)."
        raise TypeError(f"Expected adapter as an Adapter (got {adapter!r}). {hint}")
    kind = type(adapter)
    if not isinstance(getattr(kind, "family", None), str):
        raise TypeError(f"Expected {kind.__name__}.family as a str (got none). It names the family in messages.")
    mixin = getattr(kind, "block_mixin", None)
    if not (isinstance(mixin, type) and issubclass(mixin, CoarseBlock) and hasattr(mixin, "forward")):
        raise TypeError(
            f"Expected {kind.__name__}.block_mixin as a subclass of CoarseBlock with a forward (got {mixin!r}). Its "
            "forward has the signature of the block's and returns self.coarse(x, mask)."
        )


def _same_weights(model: nn.Module) -> str | None:
    """The error message for a paper's original code, naming libraries that load its weights; ``None``: other code."""
    for module in model.modules():
        for kind in type(module).__mro__:
            found = [v for k, v in ELSEWHERE.items() if f"{kind.__module__}.".startswith(f"{k}.")]
            if found and kind.__name__.endswith(("VisionTransformer", "CLIP")):
                name, where = found[0]
                return (
                    f"Expected a supported model (got {type(module).__name__} of {name}, whose blocks are its own). "
                    f"The same weights load as {where}; other sizes have similar names."
                )
    return None


def _first_to_serve(module: nn.Module) -> Adapter | None:
    return next((adapter for adapter in ADAPTERS if adapter.serves(module)), None)


__all__ = ["ADAPTERS", "Adapter", "EncoderLayers", "find_adapter"]
