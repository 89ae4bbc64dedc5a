"""EoMT of transformers, on DINOv2 or DINOv3: coarse up to the layer where queries join, then every patch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, CoarseSite, ours
from tokengraph.adapters.transformers.outputs import lift_hidden_states, whole_sequence
from tokengraph.adapters.transformers.supported import check_attention
from tokengraph.adapters.transformers.vit import TransformersViT

ORIGINS = (
    ("transformers.models.eomt.modeling_eomt", "EomtForUniversalSegmentation"),
    ("transformers.models.eomt_dinov3.modeling_eomt_dinov3", "EomtDinov3ForUniversalSegmentation"),
)


class TransformersEomt(TransformersViT):
    """``EomtForUniversalSegmentation`` and ``EomtDinov3ForUniversalSegmentation``.

    Queries join the sequence ``config.num_blocks`` layers before the end. These layers predict masks on the patch grid
    and stay as they are; the layers before them are the blocks of a schedule, and behind the last of them every patch
    has the features of its cluster (with a strategy that stores or reconstructs tokens, its own).
    """

    family = "transformers EoMT (DINOv2 and DINOv3)"

    def serves(self, model: Any) -> bool:
        """Returns whether the model is an EoMT."""
        return any(is_a(model, *origin) for origin in ORIGINS)

    def blocks(self, model: Any) -> list[nn.Module]:
        """The layers in front of the queries.

        Raises:
            ValueError: If there is none.
        """
        ahead = super().blocks(model)[: self._ahead(model)]
        if not ahead:
            raise ValueError(
                f"Expected layers in front of the queries of {type(model).__name__} (got num_blocks="
                f"{model.config.num_blocks} of {len(model.layers)} layers). In all of them masks need the patch grid."
            )
        return ahead

    def rest(self, model: Any) -> list[nn.Module]:
        """The layers from the queries on."""
        return list(model.layers)[self._ahead(model) :]

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Raises ValueError for attention that takes no float mask."""
        for layer in self.blocks(core):
            check_attention(layer.attention)

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns True: the layers behind the blocks need the patch grid."""
        return True

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: the last block gives every patch, and so do hidden states."""
        return [(self.blocks(core)[-1], "output", lift_block), (core, "output", lift_hidden_states)]

    @staticmethod
    def _ahead(model: Any) -> int:
        return max(len(model.layers) - int(model.config.num_blocks), 0)


@ours
def lift_block(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook of the last block: gives every patch to the layers behind it."""
    site: CoarseSite = module.__dict__[SITE]
    return whole_sequence(site.trace, output)
