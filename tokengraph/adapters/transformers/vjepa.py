"""The encoder of V-JEPA 2 of transformers: tubes whose rotary positions along time, rows and columns are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.parts.heads import split_heads
from tokengraph.adapters.parts.hooks import check_called_alone
from tokengraph.adapters.transformers.outputs import lift_hidden_states, lift_output
from tokengraph.adapters.transformers.video import Tubes
from tokengraph.adapters.transformers.vit import apply_parts
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats
from tokengraph.maps.lineage import Lineage

ORIGIN = "transformers.models.vjepa2.modeling_vjepa2"


class JepaLayer(CoarseBlock):
    """``VJEPA2Layer`` of the encoder that can coarsen its tokens."""

    def forward(self, hidden_states: Tensor, position_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Takes ``[B, n, C]``; returns it in a tuple, without an attention map."""
        if position_mask is not None:
            raise ValueError("Expected the tubes of whole videos (got a position_mask).")
        return self.coarse(hidden_states), None


class TransformersJepa(Tubes):
    """The encoder of ``VJEPA2Model`` and ``VJEPA2ForVideoClassification``.

    Predictor and attentive pooler get every tube. The stock attention runs until tokens are coarse or a mask is needed;
    from then on its own projections go through ``scaled_dot_product_attention``, rotated by each token's position: that
    of its tube, or the mean of its members' (our own choice).
    """

    family = "transformers V-JEPA 2 (encoder)"
    block_mixin = JepaLayer

    def serves(self, model: Any) -> bool:
        """Returns whether the model is V-JEPA 2's encoder."""
        return is_a(model, ORIGIN, "VJEPA2Encoder")

    def blocks(self, model: Any) -> list[nn.Module]:
        """The encoder's layers."""
        return list(model.layer)

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Nothing to check."""

    def tubelet(self, embedding: Any) -> Any:
        """The convolution that makes tubes."""
        return embedding.patch_embeddings.proj

    def grid(self, model: Any) -> tuple[int, ...]:
        """``(T, H, W)`` of the model's own clips."""
        config, side = model.config, int(model.config.crop_size) // int(model.config.patch_size)
        return max(int(config.frames_per_clip) // int(config.tubelet_size), 1), side, side

    def num_prefix(self, model: Any) -> int:
        """0: the model has none."""
        return 0

    def has_class_token(self, model: Any) -> bool:
        """Returns False: the model has none."""
        return False

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid of a video; an image alone is repeated to fill a tube."""
        frames, rows, columns = super().image_grid(embedding, images)
        return max(frames, 1), rows, columns

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns whether a predictor or a pooler behind the encoder reads single tubes."""
        return model is not core

    def stock(self, kind: type[nn.Module], block: Any, x: Tensor, **side: Any) -> Tensor:
        """The layer's own forward without its attention map."""
        return kind.forward(block, x, **side)[0]

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention, drop path and the residual, by the positions ``side["places"]`` of coarse tokens."""
        attention, y, places = block.attention, block.norm1(x), side.get("places")
        if mask is None and places is None:
            return block.drop_path(attention(y)[0]) + x
        check_called_alone(attention, "it takes neither masks nor positions")
        q, k, v = (split_heads(part(y), width=attention.attention_head_size) for part in _projections(attention))
        k, q = (attention.apply_rotary_embeddings(t, _places(attention, y, places)) for t in (k, q))
        dropout = attention.dropout_prob if attention.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=attention.scaling)  # type: ignore[arg-type]
        return block.drop_path(attention.proj(y.transpose(1, 2).flatten(2))) + x

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The same for the MLP."""
        return apply_parts(block, ("norm2", "mlp", "drop_path"), x) + x

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """The projections."""
        return dict(zip("qkv", _projections(block.attention), strict=True))

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the outputs of the projections; keys after the rotation, which in this model changes their length."""
        attention = block.attention

        def heads(name: str) -> Tensor:
            return split_heads(kept[name], width=attention.attention_head_size)

        def project() -> tuple[Tensor, Tensor]:
            where = _places(attention, kept["q"], side.get("places"))
            return tuple(attention.apply_rotary_embeddings(heads(n), where) for n in "qk")  # type: ignore[return-value]

        return AttentionStats(project, float(attention.scaling), num_prefix, bias, values=lambda: heads("v"))

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Positions ``[B, n, 3]`` of the current tokens along time, rows and columns."""
        images, tubes = lineage.start.images, lineage.start.width
        like = next(block.parameters())
        ids = block.attention.get_position_ids(like.new_empty(1, tubes, 1))
        rows = torch.stack(ids, dim=1).float()
        if lineage.ancestor is not None:
            return {**side, "places": rows[lineage.ancestor]}
        return {**side, "places": lineage.averaged(rows.expand(images, -1, -1).flatten(0, 1))}

    def tokens_to_check(self, block: Any) -> int:
        """Eight; written down because no token can be repeated: its copies would stand at other positions."""
        return 8

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """Empty: positions count the tokens."""
        return {}

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: the encoder lifts its tokens, the model around it the hidden states that it records."""
        holders = [m for m in model.modules() if getattr(m, "encoder", None) is core]
        return [(core, "output", lift_output), *((m, "output", lift_hidden_states) for m in holders)]


def _projections(attention: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
    return attention.query, attention.key, attention.value


def _places(attention: Any, x: Tensor, places: Tensor | None) -> tuple[Tensor, ...]:
    """Positions of tokens ``[B, n, C]`` along each axis, as the attention's rotation takes them."""
    if places is None:
        return attention.get_position_ids(x)
    return tuple(axis[:, None].to(x.dtype) for axis in places.unbind(dim=2))
