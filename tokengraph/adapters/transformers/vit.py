"""Vision transformers of Hugging Face transformers: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, MAE."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, InputShape, strided_grid
from tokengraph.adapters.coarse import SITE, CoarseBlock
from tokengraph.adapters.parts.heads import split_heads
from tokengraph.adapters.parts.rotary import coarse_tables
from tokengraph.adapters.transformers.anatomy import (
    class_token_of,
    has_scales,
    is_beit,
    is_hybrid,
    is_naflex,
    is_older,
    is_vision_model,
    layers_of,
    patches_of,
)
from tokengraph.adapters.transformers.outputs import output_hooks
from tokengraph.adapters.transformers.supported import check_around, check_attention, wants_whole
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage

FIRST_NORM = ("layernorm_before", "norm1", "layer_norm1")
SECOND_NORM = ("layernorm_after", "norm2", "layer_norm2")
ATTENTION = ("attention", "self_attn")
AFTER_ATTENTION = ("dropout", "layer_scale1", "drop_path")
AFTER_MLP = ("dropout", "layer_scale2", "drop_path")


class TransformersLayer(CoarseBlock):
    """A pre-norm layer of transformers that can coarsen its tokens."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Takes ``[B, P+n, C]``; ``attention_mask`` is over the uncoarsened sequence."""
        if not isinstance(attention_mask, Tensor | None):  # of flex attention
            check_attention(first_part(self, ATTENTION))
        return self.coarse(hidden_states, attention_mask, **kwargs)


class TransformersViT(Adapter):
    """Any vision model of transformers 5 with a list of pre-norm layers.

    The parts of a layer are found by their names; the attach-time check compares them with the layer's own forward.
    """

    family = "transformers vision models (ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, MAE)"
    block_mixin = TransformersLayer
    side_inputs = ("position_embeddings",)
    parts: ClassVar[tuple[tuple[str, ...], ...]] = (FIRST_NORM, ATTENTION, SECOND_NORM, ("mlp",))

    def serves(self, model: Any) -> bool:
        """Returns whether the model has patch embeddings and layers whose attention takes a mask."""
        others = (is_older, is_naflex, is_beit, has_scales)
        return is_vision_model(model) and not any(kind(model) for kind in others)

    def blocks(self, model: Any) -> list[nn.Module]:
        """The layers, each of two norms, attention and MLP."""
        layers = layers_of(model)
        assert layers is not None
        if isinstance(patches_of(model.embeddings), nn.Linear) and not is_naflex(model):
            raise ValueError(
                f"Expected a model of images (got {type(model).__name__}, which takes patches of images of any shape)."
            )
        for i, layer in enumerate(layers):
            if any(first_part(layer, names) is None for names in self.parts):
                raise ValueError(
                    f"Expected layers of two norms, attention and MLP (got {type(layer).__name__} at {i} with "
                    f"{', '.join(name for name, _ in layer.named_children())})."
                )
            if (takes := _signature(layer))[:3] == ("self", "hidden_states", "position_embeddings"):
                raise ValueError(
                    f"Expected layers that take attention_mask before position_embeddings (got {type(layer).__name__} "
                    f"at {i} with {', '.join(takes[1:])})."
                )
        return list(layers)

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Raises ValueError for heads that need the grid, and for attention that takes no float mask."""
        check_around(model, core)
        if not is_older(core):
            for layer in layers_of(core) or ():
                check_attention(first_part(layer, ATTENTION))

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns whether a head around the model needs the grid, as DPT's does."""
        return wants_whole(model, core)

    def num_prefix(self, model: Any) -> int:
        """Number of class, distillation and register tokens of the embeddings."""
        embeddings = model.embeddings
        registers = getattr(embeddings, "register_tokens", None)
        named = (class_token_of(embeddings), getattr(embeddings, "distillation_token", None), registers)
        return sum(1 if token.dim() < 3 else token.size(1) for token in named if token is not None)

    def has_class_token(self, model: Any) -> bool:
        """Returns whether the embeddings have one."""
        return class_token_of(model.embeddings) is not None

    def channels(self, model: Any) -> int:
        """``config.hidden_size``."""
        return int(model.config.hidden_size)

    def grid(self, model: Any) -> tuple[int, int]:
        """``config.image_size`` over ``config.patch_size``."""
        (height, width), (rows, columns) = (_pair(getattr(model.config, n)) for n in ("image_size", "patch_size"))
        return height // rows, width // columns

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention, dropout, layer scale and drop path, if the layer has them, and the residual."""
        if mask is not None:  # the implementation may have changed since attach
            check_attention(first_part(block, ATTENTION))
        y, _ = first_part(block, ATTENTION)(first_part(block, FIRST_NORM)(x), attention_mask=mask, **side)
        return apply_parts(block, AFTER_ATTENTION, y) + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The same for the MLP."""
        return apply_parts(block, AFTER_MLP, first_part(block, ("mlp",))(first_part(block, SECOND_NORM)(x))) + x

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """The projections."""
        attention = first_part(block, ATTENTION)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
            parts = ", ".join(name for name, _ in attention.named_children())
            raise ValueError(
                f"Expected an attention with q_proj, k_proj and v_proj (got {type(attention).__name__} with {parts})."
            )
        return {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of the projections; keys before, attention after the rotary embedding."""
        attention = first_part(block, ATTENTION)
        width, tables = int(attention.head_dim), side.get("position_embeddings")

        def heads(name: str) -> Tensor:
            return split_heads(kept[name], width=width)

        def project() -> tuple[Tensor, Tensor]:
            if tables is None:
                return heads("q"), heads("k")
            rotate = sys.modules[_origin(attention)].apply_rotary_pos_emb
            return rotate(heads("q"), heads("k"), *tables)

        def keys() -> Tensor:
            return heads("k")

        scale = getattr(attention, "scaling", getattr(attention, "scale", width**-0.5))

        def values() -> Tensor:
            return heads("v")

        return AttentionStats(project, float(scale), num_prefix, bias, keys=keys, values=values)

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Coarsens the rotary tables with the tokens."""
        tables = side.get("position_embeddings")
        return side if tables is None else {**side, "position_embeddings": coarse_tables(tables, lineage)}

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """Rotary tables, for layers that take them."""
        if "position_embeddings" not in _signature(block):
            return {}
        parameter = next(block.parameters())
        angle = torch.linspace(0, 3, count * int(first_part(block, ATTENTION).head_dim), device=parameter.device)
        angle = angle.view(count, -1).to(parameter.dtype)
        return {"position_embeddings": (angle.cos(), angle.sin())}

    def embedding(self, model: Any) -> nn.Module:
        """``model.embeddings``."""
        return model.embeddings

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The grid, and whether patches lie row by row: ViTMAE shuffles them unless its ``noise`` is rising."""
        shape = super().input_shape(embedding, args, kwargs)
        if not hasattr(embedding, "random_masking"):
            return shape
        noise = args[1] if len(args) > 1 else kwargs.get("noise")
        if torch.compiler.is_compiling():  # reading the values would break the graph
            noise = None
        return replace(shape, ordered=noise is not None and not bool((noise.diff(dim=1) < 0).any()))

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the patch convolution makes."""
        if is_hybrid(embedding):
            return images.size(-2) // embedding.patch_size, images.size(-1) // embedding.patch_size
        return strided_grid(patches_of(embedding), images)

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: heads pool every patch, backbones return full feature maps, ``lift=True`` lifts other outputs."""
        return output_hooks(model, core, self.channels(core))


def first_part(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The module's first part among these names; ``None``: it has none."""
    return next((getattr(module, n) for n in names if getattr(module, n, None) is not None), None)


def apply_parts(block: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """Applies to ``x`` those of the named parts that the block has, in order."""
    for name in names:
        part: Any = getattr(block, name, None)
        x = x if part is None else part(x)
    return x


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, Iterable) else (value, value)
    return int(first), int(second)


def _origin(module: nn.Module) -> str:
    return type(module).__module__


def _signature(block: nn.Module) -> tuple[str, ...]:
    original = getattr(block.__dict__.get(SITE), "original", None) or type(block)
    return tuple(inspect.signature(original.forward).parameters)
