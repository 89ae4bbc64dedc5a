"""BEiT and Data2Vec of transformers: a relative position bias in every layer, or one that all layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.coarse import SITE, CoarseBlock, CoarseSite, ours
from tokengraph.adapters.parts.pooling import for_mean
from tokengraph.adapters.parts.relative import coarse_bias, with_bias
from tokengraph.adapters.transformers.anatomy import is_beit, is_older, is_vision_model
from tokengraph.adapters.transformers.older import OlderTransformersViT, attention_under
from tokengraph.adapters.transformers.supported import check_attention
from tokengraph.adapters.transformers.vit import TransformersViT
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage


class BeitLayer(CoarseBlock):
    """``BeitLayer`` that can coarsen its tokens."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | SharedBias | None = None, **kwargs: Any
    ) -> Tensor:
        """Takes ``[B, P+n, C]``; mask and bias are over the uncoarsened sequence."""
        if isinstance(attention_mask, SharedBias):
            kwargs["shared"], attention_mask = attention_mask.bias, attention_mask.mask
        if not isinstance(attention_mask, Tensor | None):  # of flex attention
            check_attention(self.attention)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            kwargs["bool_mask"] = True
        return self.coarse(hidden_states, attention_mask, **kwargs)


class OlderBeitLayer(CoarseBlock):
    """``Data2VecVisionLayer``, and ``BeitLayer`` before about transformers 5.9, that can coarsen their tokens."""

    def forward(self, hidden_states: Tensor, output_attentions: bool = False, *side: Any, **kwargs: Any) -> Any:
        """Takes ``[B, P+n, C]``; returns it in a tuple, with the attention map if the stock layer returns one."""
        kwargs |= dict(zip(("relative_position_bias", "interpolate_pos_encoding", "resolution"), side, strict=False))
        if not output_attentions:
            return (self.coarse(hidden_states, None, **kwargs),)
        maps: list[Tensor | None] = []
        out = self.coarse(hidden_states, None, **kwargs, maps=maps)
        return out, maps.pop()


class SharedBias:
    """The bias that all layers share, held apart from a mask that the model adds to it.

    torch's functions read it as the tensor ``bias + mask``; coarsened layers read both parts.

    Args:
        bias: ``[1, H, P+N, P+N]``.
        mask: The mask that was added to it; ``None``: none.
    """

    def __init__(self, bias: Tensor, mask: Tensor | None = None) -> None:
        self.bias = bias
        self.mask = mask
        self.dtype, self.device, self.shape = bias.dtype, bias.device, bias.shape

    def tensor(self) -> Tensor:
        """``bias + mask``."""
        return self.bias if self.mask is None else self.bias + self.mask

    def __add__(self, mask: Tensor) -> SharedBias:
        return SharedBias(self.bias, mask if self.mask is None else self.mask + mask)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(a.tensor() if isinstance(a, SharedBias) else a for a in args)
        kwargs = {k: v.tensor() if isinstance(v, SharedBias) else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


class BiasFollows(TransformersViT):
    """Base of the adapters for layers with a relative position bias."""

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: pooling counts every patch, and a shared bias is held apart from masks."""
        found = super().outputs(model, core)
        shared, pooler = (getattr(core, name, None) for name in ("shared_position_bias", "pooler"))
        if shared is not None:
            found.append((shared, "output", keep_apart))
        if getattr(pooler, "layernorm", None) is not None:
            found.append((pooler, "input", average_patches))  # type: ignore[arg-type]
        return found

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """The bias of the layer and of the model, together, between the current tokens."""
        prefix = getattr(block, SITE).trace.num_prefix
        shared, tokens = _shared(side), prefix + lineage.start.width
        if shared is not None and shared.size(-1) != tokens:
            raise ValueError(
                "Expected interpolate_pos_encoding=False (got True). With it the shared bias is resized to the "
                "number of coarse tokens; without it the bias follows the image size, too."
            )
        whole = _bias(block, side, tokens)
        if whole is None:
            return side
        if side.get("bool_mask") and not _exporting():
            raise ValueError(
                "Expected attn_implementation='eager' for an attention_mask (got 'sdpa'): transformers adds its bool "
                "mask to the relative position bias as 0 and 1, which bars nothing."
            )
        kept = {k: v for k, v in side.items() if k not in ("shared", "relative_position_bias")}
        return {**kept, "relative": coarse_bias(whole, lineage, prefix)}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of both projections, with the relative position bias."""
        plain = super().statistics(block, kept, num_prefix, bias, {})
        return plain.with_bias(lambda: with_bias(bias, _bias(block, side, kept["k"].size(1))))

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """The resolution of an image that is one patch wide."""
        size = _patch_size(block)
        return {"resolution": ((count - 1) * size, size)}


class TransformersBeit(BiasFollows):
    """BEiT of transformers 5. The relative position bias is coarsened with the tokens, in the attention mask."""

    family = "transformers BEiT"
    block_mixin = BeitLayer
    side_inputs = ("interpolate_pos_encoding", "resolution")

    def serves(self, model: Any) -> bool:
        """Returns whether the model has BEiT's layers, with an attention that takes a mask."""
        return is_vision_model(model) and is_beit(model) and not is_older(model)

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path(lambda_1 * dropout(attention(layernorm_before(x))))``, with the bias in the mask."""
        relative = side.get("relative")
        total = with_bias(mask, relative)
        if relative is None:  # in the order of the stock layer, for the same bits
            total = with_bias(with_bias(mask, side.get("shared")), _own(block, side, x.size(1)))
        rest = {k: v for k, v in side.items() if k not in (*self.side_inputs, "shared", "relative", "bool_mask")}
        if mask is not None:
            check_attention(block.attention)
        y, _ = block.attention(block.layernorm_before(x), attention_mask=total, **rest)
        return block.drop_path(block.lambda_1 * block.dropout(y)) + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The same with the MLP."""
        y = block.dropout(block.mlp(block.layernorm_after(x)))
        return block.drop_path(block.lambda_2 * y) + x


class OlderTransformersBeit(BiasFollows, OlderTransformersViT):
    """Data2Vec, and BEiT before its attention took a mask.

    The stock attention runs as long as only the stock bias is added to the logits. Otherwise its own projections go
    through ``scaled_dot_product_attention``, regardless of ``attn_implementation``.
    """

    family = "transformers Data2Vec, and BEiT of older layers"
    block_mixin = OlderBeitLayer
    side_inputs = ("relative_position_bias", "interpolate_pos_encoding", "resolution")

    def serves(self, model: Any) -> bool:
        """Returns whether the model has BEiT's layers of the older kind."""
        return is_vision_model(model) and is_beit(model) and is_older(model)

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path(lambda_1 * attention(layernorm_before(x)))``."""
        normed, maps = block.layernorm_before(x), side.get("maps")
        if mask is None and side.get("relative") is None:
            known = {k: v for k, v in side.items() if k in self.side_inputs}
            y, *rest = block.attention(normed, **known, **({} if maps is None else {"output_attentions": True}))
            if maps is not None:
                maps.append(rest[0])
        else:
            dropout = block.attention.attention.config.attention_probs_dropout_prob
            total = with_bias(mask, _bias(block, side, x.size(1)))
            y = attention_under(block.attention, normed, total, dropout, maps)
        return block.drop_path(y if block.lambda_1 is None else block.lambda_1 * y) + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The same with the MLP."""
        y = block.output(block.intermediate(block.layernorm_after(x)))
        return block.drop_path(y if block.lambda_2 is None else block.lambda_2 * y) + x

    def stock(self, kind: type[nn.Module], block: Any, x: Tensor, **side: Any) -> Tensor:
        """Takes the tokens out of the tuple that the layer returns."""
        return kind.forward(block, x, **side)[0]


@ours
def keep_apart(module: nn.Module, args: Any, output: Tensor) -> SharedBias:
    """Forward hook of the shared bias: holds it apart from a mask that the model adds to it."""
    return SharedBias(output)


@ours
def average_patches(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a pooler that averages patches: its mean counts every input patch once."""
    site: CoarseSite = module.__dict__[SITE]
    return (for_mean(site.trace, args[0]), *args[1:])


def _exporting() -> bool:
    """Returns whether the model is being exported; transformers then makes a mask even if the user gave none."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


def _shared(side: dict[str, Any]) -> Tensor | None:
    """The bias that all layers share, under either name."""
    return side.get("shared", side.get("relative_position_bias"))


def _bias(block: Any, side: dict[str, Any], tokens: int) -> Tensor | None:
    """The bias that attention adds: the coarse one, or the sum of the layer's and the model's ``[1, H, T, T]``."""
    if "relative" in side:
        return side["relative"]
    own, shared = _own(block, side, tokens), _shared(side)
    return shared if own is None else own if shared is None else own + shared


def _own(block: Any, side: dict[str, Any], tokens: int) -> Tensor | None:
    inner = getattr(block.attention, "attention", block)  # where older layers have it
    module = getattr(inner, "relative_position_bias", None)
    if module is None:
        return None
    size = _patch_size(block)
    height, width = side["resolution"]
    return module((height // size, width // size), side.get("interpolate_pos_encoding", False), dim_size=tokens)


def _patch_size(block: Any) -> int:
    attention = block.attention
    return int(getattr(attention, "attention", attention).config.patch_size)
