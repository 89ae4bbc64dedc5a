"""ViTPose's backbone of transformers, with plain MLPs or with experts of which each image has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.transformers.older import OlderTransformersViT
from tokengraph.attention.keep_mask import KeepMask

ORIGIN = "transformers.models.vitpose_backbone.modeling_vitpose_backbone"
EXPERT = "_tokengraph_expert"  # the attribute with the expert of each image, while the block runs


class PoseLayer(CoarseBlock):
    """``VitPoseBackboneLayer`` that can coarsen its tokens."""

    def forward(self, hidden_states: Tensor, dataset_index: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Takes ``[B, n, C]``; ``dataset_index [B]``: the expert of each image, with several experts."""
        if self.num_experts > 1 and dataset_index is None:  # type: ignore[attr-defined]
            raise ValueError("Expected dataset_index [B] for a model with several experts (got none).")
        self.__dict__[EXPERT] = dataset_index
        try:
            return self.coarse(hidden_states, dataset_index=dataset_index)
        finally:
            self.__dict__.pop(EXPERT, None)


class TransformersPose(OlderTransformersViT):
    """``VitPoseBackbone``, also inside ``VitPoseForPoseEstimation``, which gets every patch.

    With several experts ``dataset_index`` goes to the MLP of every block unchanged: it belongs to images, not tokens.
    """

    family = "transformers ViTPose (plain and with experts)"
    block_mixin = PoseLayer

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``VitPoseBackbone``."""
        return is_a(model, ORIGIN, "VitPoseBackbone")

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention and the residual."""
        return super().attend(block, x, mask)

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """The MLP with its residual, by the expert of each image if there are several."""
        if block.num_experts == 1:
            return super().feed(block, x)
        expert = block.__dict__.get(EXPERT)
        if expert is None:  # in the attach-time check
            expert = _first_expert(x)
        return block.mlp(block.layernorm_after(x), indices=expert) + x

    def example(self, block: Any, count: int) -> dict[str, Any]:
        """The first expert, if there are several."""
        return {} if block.num_experts == 1 else {"dataset_index": _first_expert(next(block.parameters()))}


def _first_expert(like: Tensor) -> Tensor:
    return torch.zeros(1, dtype=torch.long, device=like.device)
