"""timm's ``qwen3_vit_*``: the tower of Qwen3-VL, whose blocks end in the full grid."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, CoarseSite
from tokengraph.adapters.parts.intermediates import WithIntermediates, finished_blocks, lift_for
from tokengraph.adapters.timm.eva import EvaBlock, TimmEva

ORIGIN = "timm.models.qwen3_vit"


class Qwen3Block(EvaBlock):
    """``EvaBlock`` of a model that lays tokens out on their grid behind the last one."""

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """As :class:`EvaBlock`; the last block returns a token for each patch, ``[B, N, C]``."""
        x = super().forward(x, rope, attn_mask, is_causal)
        site: CoarseSite = self.__dict__[SITE]
        return site.trace.lift_sequence(x) if site.index == site.trace.depth - 1 else x


class Qwen3Model(WithIntermediates):
    """``Qwen3VitEncoder`` with coarsened blocks."""

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, with every map lifted to full resolution from the tokens of its layer."""
        site: CoarseSite = getattr(self, SITE)
        plain = super().forward_intermediates  # type: ignore[misc]
        asked = inspect.signature(plain).bind(x, *args, **kwargs)
        asked.apply_defaults()
        wanted, alone, depth = asked.arguments["output_fmt"], asked.arguments["intermediates_only"], site.trace.depth
        lift = lift_for(site.trace, wanted)
        # Only the last block returns the full grid, which the other output needs.
        asked.arguments |= {"output_fmt": "NLC", "stop_early": asked.arguments["stop_early"] and alone}
        out = plain(*asked.args, **asked.kwargs)
        layers = finished_blocks(asked.arguments["indices"], depth)
        grid = self.patch_embed.dynamic_feat_size(x.shape[-2:])  # type: ignore[attr-defined]

        def lifted(tokens: Tensor, layer: int) -> Tensor:
            if layer < depth:
                return lift(tokens, layer=layer, replenish=True)
            return tokens.transpose(1, 2).unflatten(2, grid).contiguous() if wanted == "NCHW" else tokens

        if isinstance(out, dict):
            out["image_intermediates"] = [lifted(t, i) for t, i in zip(out["image_intermediates"], layers, strict=True)]
            return out
        if alone:
            return [lifted(t, i) for t, i in zip(out, layers, strict=True)]
        return out[0], [lifted(t, i) for t, i in zip(out[1], layers, strict=True)]


class TimmQwen3(TimmEva):
    """timm's ``Qwen3VitEncoder``, also in ``Qwen3VitClassifier``. Its output always has a token for each patch."""

    family = "timm Qwen3VitEncoder (Qwen3-VL, Qwen3.5) with EvaBlock"
    block_mixin = Qwen3Block
    model_mixin = Qwen3Model

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``Qwen3VitEncoder``."""
        return is_a(model, ORIGIN, "Qwen3VitEncoder")

    def has_class_token(self, model: Any) -> bool:
        """Returns False: the model has none."""
        return False

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns True: the model lays its tokens out on the grid."""
        return True
