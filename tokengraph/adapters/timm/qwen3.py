"""timm's Qwen3 vision encoder: rotary blocks on a grid that the encoder lays its output out on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, CoarseSite, ours
from tokengraph.adapters.parts.intermediates import WithIntermediates, finished_blocks, lift_for
from tokengraph.adapters.timm.eva import TimmEva


class Qwen3Model(WithIntermediates):
    """``timm.models.qwen3_vit.Qwen3VitEncoder`` with coarsened blocks."""

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, with every map lifted to full resolution from the tokens of its layer."""
        site: CoarseSite = getattr(self, SITE)
        plain, trace = super().forward_intermediates, site.trace  # type: ignore[misc]
        asked = inspect.signature(plain).bind(x, *args, **kwargs)
        asked.apply_defaults()
        lift = lift_for(trace, asked.arguments["output_fmt"])
        asked.arguments["output_fmt"] = "NLC"
        out = plain(*asked.args, **asked.kwargs)
        layers = finished_blocks(asked.arguments["indices"], trace.depth)

        def lifted(tokens: Tensor, layer: int) -> Tensor:
            coarse = tokens.size(1) == trace.lineage(layer).now.width
            return lift(tokens, layer=layer if coarse else 0, replenish=True)  # the last ones come lifted

        def whole(maps: list[Tensor]) -> list[Tensor]:
            return [lifted(t, i) for t, i in zip(maps, layers, strict=True)]

        if isinstance(out, dict):
            return {**out, "image_intermediates": whole(out["image_intermediates"])}
        return whole(out) if asked.arguments["intermediates_only"] else (out[0], whole(out[1]))


class TimmQwen3(TimmEva):
    """timm's ``Qwen3VitEncoder``, also inside ``Qwen3VitClassifier``. Merger and heads get every patch."""

    family = "timm Qwen3VitEncoder with EvaBlock"
    model_mixin = Qwen3Model

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``Qwen3VitEncoder``."""
        return is_a(model, "timm.models.qwen3_vit", "Qwen3VitEncoder")

    def num_prefix(self, model: Any) -> int:
        """0: the model has none."""
        return 0

    def has_class_token(self, model: Any) -> bool:
        """Returns False: the model has none."""
        return False

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns True: the encoder lays its output out on the grid."""
        return True

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """A hook by which the last block gives every patch."""
        return [(self.blocks(core)[-1], "output", lift_block)]


@ours
def lift_block(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the last block: gives every patch to what lays them out."""
    site: CoarseSite = module.__dict__[SITE]
    return site.trace.lift_sequence(output)
