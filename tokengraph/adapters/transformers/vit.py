"""Vision transformers of Hugging Face transformers: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, MAE."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, is_a
from tokengraph.adapters.block import CoarseBlock
from tokengraph.adapters.rotary import coarse_tables
from tokengraph.adapters.site import SITE, Site, ours
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats
from tokengraph.state import State

LAYERS = ("layers", "layer", "encoder.layers", "encoder.layer", "model.layer", "model.layers")
FIRST_NORM = ("layernorm_before", "norm1", "layer_norm1")
SECOND_NORM = ("layernorm_after", "norm2", "layer_norm2")
ATTENTION = ("attention", "self_attn")
AFTER_ATTENTION = ("dropout", "layer_scale1", "drop_path")
SIGLIP2 = "transformers.models.siglip2.modeling_siglip2"
BEIT = (
    ("transformers.models.beit.modeling_beit", "BeitLayer"),
    ("transformers.models.data2vec.modeling_data2vec_vision", "Data2VecVisionLayer"),
)
AFTER_MLP = ("dropout", "layer_scale2", "drop_path")


class TransformersLayer(CoarseBlock):
    """A pre-norm layer of transformers with a coarsening in it."""

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Takes ``[B, P+n, C]``; ``attention_mask`` is over the uncoarsened sequence."""
        return self.coarse(hidden_states, attention_mask, **kwargs)


class TransformersViT(Adapter):
    """Any vision model of transformers 5 with a list of pre-norm layers.

    The parts of a layer are found by their names; the attach-time check compares them with the layer's own forward.
    """

    family = "transformers vision models (ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, MAE)"
    block_mixin = TransformersLayer
    side_inputs = ("position_embeddings",)
    parts: ClassVar[tuple[tuple[str, ...], ...]] = (FIRST_NORM, ATTENTION, SECOND_NORM, ("mlp",))

    def serves(self, model: nn.Module) -> bool:
        """Whether it has patch embeddings and a list of layers whose attention takes a mask."""
        return is_vision_model(model) and not any(kind(model) for kind in (is_older, is_naflex, is_beit))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The layers, each of two norms, attention and MLP."""
        layers = layers_of(model)
        assert layers is not None
        if isinstance(_patches(model.embeddings), nn.Linear) and not is_naflex(model):
            raise ValueError(
                f"Expected a model of images (got {type(model).__name__}, which takes patches of images of any shape)."
            )
        for i, layer in enumerate(layers):
            if any(first_part(layer, names) is None for names in self.parts):
                raise ValueError(
                    f"Expected layers of two norms, attention and MLP (got {type(layer).__name__} at {i} with "
                    f"{', '.join(name for name, _ in layer.named_children())})."
                )
        return list(layers)

    def num_prefix(self, model: nn.Module) -> int:
        """Class, distillation and register tokens of the embeddings."""
        embeddings: Any = model.embeddings
        registers = getattr(embeddings, "register_tokens", None)
        named = (_class_token(embeddings), getattr(embeddings, "distillation_token", None))
        return sum(token is not None for token in named) + (0 if registers is None else registers.size(1))

    def has_class_token(self, model: nn.Module) -> bool:
        """Whether the embeddings have one."""
        return _class_token(model.embeddings) is not None

    def channels(self, model: nn.Module) -> int:
        """``config.hidden_size``."""
        return int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]

    def grid(self, model: nn.Module) -> tuple[int, int]:
        """``config.image_size`` over ``config.patch_size``."""
        (height, width), (rows, columns) = (_pair(getattr(model.config, n)) for n in ("image_size", "patch_size"))
        return height // rows, width // columns

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention, dropout, layer scale and drop path, as far as the layer has them, and the residual."""
        y, _ = first_part(block, ATTENTION)(first_part(block, FIRST_NORM)(x), attention_mask=mask, **side)
        return through(block, AFTER_ATTENTION, y) + x

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The same with the MLP."""
        return through(block, AFTER_MLP, first_part(block, ("mlp",))(first_part(block, SECOND_NORM)(x))) + x

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """The projections of queries and keys."""
        attention = first_part(block, ATTENTION)
        return {"q": attention.q_proj, "k": attention.k_proj}

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of both projections; keys before, attention after the rotary embedding."""
        attention = first_part(block, ATTENTION)
        width, tables = int(attention.head_dim), side.get("position_embeddings")

        def heads(name: str) -> Tensor:
            return seen[name].unflatten(2, (-1, width)).transpose(1, 2)

        def project() -> tuple[Tensor, Tensor]:
            if tables is None:
                return heads("q"), heads("k")
            rotate = sys.modules[_origin(attention)].apply_rotary_pos_emb
            return rotate(heads("q"), heads("k"), *tables)

        def keys() -> Tensor:
            return heads("k")[:, :, num_prefix:].mean(dim=1)

        scale = getattr(attention, "scaling", getattr(attention, "scale", width**-0.5))
        return AttentionStats(project, float(scale), num_prefix, bias, keys=keys)

    def carry(self, side: dict[str, Any], state: State, block: nn.Module) -> dict[str, Any]:
        """Rotary tables follow the tokens."""
        tables = side.get("position_embeddings")
        return side if tables is None else {**side, "position_embeddings": coarse_tables(tables, state)}

    def example(self, block: nn.Module, count: int) -> dict[str, Any]:
        """Rotary tables, for layers that take them."""
        if "position_embeddings" not in _signature(block):
            return {}
        parameter = next(block.parameters())
        angle = torch.linspace(0, 3, count * int(first_part(block, ATTENTION).head_dim), device=parameter.device)
        angle = angle.view(count, -1).to(parameter.dtype)
        return {"position_embeddings": (angle.cos(), angle.sin())}

    def embedding(self, model: nn.Module) -> nn.Module:
        """``model.embeddings``."""
        return model.embeddings  # type: ignore[return-value]

    def image_grid(self, embedding: nn.Module, images: Tensor) -> tuple[int, int]:
        """As the patch convolution counts."""
        patches: Any = _patches(embedding)
        rows, columns = patches.stride
        return images.size(-2) // int(rows), images.size(-1) // int(columns)

    def outlets(self, model: nn.Module, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Pooling heads see every patch, feature maps of backbones are whole, ``lift=True`` lifts the rest."""
        found: list[tuple[nn.Module, str, Callable[..., Any]]] = []
        if is_a(core, "transformers.backbone_utils", "BackboneMixin", "transformers.utils.backbone_utils") and hasattr(
            core, "encoder"
        ):
            found.append((core.encoder, "output", lift_hidden_states))  # type: ignore[arg-type]
        head = getattr(core, "head", None)
        if head is not None and getattr(core, "use_head", True):
            found.append((head, "input", lift_head_input))
        width = 2 * self.channels(core)  # of a classifier that takes the class token and the mean of the patches
        pools = any(getattr(getattr(m, "classifier", None), "in_features", 0) == width for m in model.modules())
        found.append((core, "output", lift_pooled_output if pools else lift_output))
        return found


@ours
def lift_output(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a model: ``last_hidden_state`` at full resolution, where ``lift=True`` said so."""
    site: Site = module.__dict__[SITE]
    return _lifted(site, output) if site.recipe.lift else output


@ours
def lift_pooled_output(module: nn.Module, args: Any, output: Any) -> Any:
    """The same for models whose classifier averages patches: also wherever tokens are merged."""
    site: Site = module.__dict__[SITE]
    return _lifted(site, output) if site.recipe.lift or _merged(site) else output


@ours
def lift_head_input(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a pooling head: it sees every patch with its cluster's features."""
    site: Site = module.__dict__[SITE]
    return (site.trace.lift_sequence(args[0]), *args[1:]) if _merged(site) else args


@ours
def lift_hidden_states(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of a backbone's encoder: each of ``hidden_states`` at full resolution, for its feature maps."""
    site: Site = module.__dict__[SITE]
    if output.hidden_states is not None:
        trace = site.trace
        prefix = trace.num_prefix
        output.hidden_states = tuple(
            torch.cat([h[:, :prefix], trace.lift(h, layer=layer)], dim=1)
            for layer, h in enumerate(output.hidden_states)
        )
    return output


def _lifted(site: Site, output: Any) -> Any:
    if isinstance(output, tuple):
        return (site.trace.lift_sequence(output[0]), *output[1:])
    output.last_hidden_state = site.trace.lift_sequence(output.last_hidden_state)
    return output


def _merged(site: Site) -> bool:
    state = site.trace.state()
    return state.coarse and not any(step.lossy for step in state.maps)


def is_vision_model(model: nn.Module) -> bool:
    """Whether it is a model of transformers with patch embeddings and a list of layers."""
    ours = any(c.__module__.startswith("transformers.models.") for c in type(model).__mro__)
    return ours and _patches(getattr(model, "embeddings", None)) is not None and layers_of(model) is not None


def is_naflex(model: nn.Module) -> bool:
    """Whether it is SigLIP 2's vision model, which takes patches of images of any shape."""
    return is_vision_model(model) and any(c.__module__ == SIGLIP2 for c in type(model).__mro__)


def is_beit(model: nn.Module) -> bool:
    """Whether its layers may add a relative position bias over all tokens: BEiT and Data2Vec."""
    layers = layers_of(model)
    return layers is not None and any((c.__module__, c.__name__) in BEIT for c in type(layers[0]).__mro__)


def is_older(model: nn.Module) -> bool:
    """Whether attention holds its projections one module deeper, as ``attention.query``, and takes no mask."""
    layers: Any = layers_of(model)
    return hasattr(getattr(getattr(layers[0], "attention", None), "attention", None), "query")


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The list of layers, wherever it is in the model."""
    for path in LAYERS:
        found: Any = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    return None


def _patches(embeddings: Any) -> nn.Module | None:
    """The layer that turns pixels into patches: a convolution, or a projection inside a module of its own."""
    found = getattr(embeddings, "patch_embeddings", None)
    found = getattr(embeddings, "patch_embedding", None) if found is None else found
    found = getattr(found, "projection", found)
    return found if isinstance(found, nn.Conv2d | nn.Linear) else None


def _class_token(embeddings: Any) -> Any:
    found = getattr(embeddings, "cls_token", None)
    return getattr(embeddings, "class_embedding", None) if found is None else found


def first_part(module: nn.Module, names: tuple[str, ...]) -> Any:
    """The first part that the module has of these names."""
    return next((getattr(module, n) for n in names if getattr(module, n, None) is not None), None)


def through(block: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """``x`` through those of the named parts that the block has."""
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
    import inspect

    original = getattr(block.__dict__.get(SITE), "original", None) or type(block)
    return tuple(inspect.signature(original.forward).parameters)
