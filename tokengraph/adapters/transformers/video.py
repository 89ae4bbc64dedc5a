"""Video transformers of transformers, whose patches are tubes on a grid (T, H, W): VideoMAE and ViViT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import InputShape, is_a, strided_grid, tokens_after
from tokengraph.adapters.transformers.anatomy import layers_of
from tokengraph.adapters.transformers.older import OlderTransformersViT
from tokengraph.adapters.transformers.outputs import output_hooks
from tokengraph.adapters.transformers.supported import check_attention
from tokengraph.adapters.transformers.vit import TransformersViT

VIDEOMAE = "transformers.models.videomae.modeling_videomae"
VIVIT = "transformers.models.vivit.modeling_vivit"


class Tubes(TransformersViT):
    """Base of the adapters of videos ``[B, frames, channels, height, width]``. Strategies see the grid (T, H, W)."""

    def tubelet(self, embedding: Any) -> Any:
        """The convolution that makes tubes."""
        return embedding.patch_embeddings.projection

    def grid(self, model: Any) -> tuple[int, ...]:
        """``(T, H, W)`` of the model's own clips."""
        config, (frames, rows, columns) = model.config, self.tubelet(model.embeddings).kernel_size
        height, width = _pair(config.image_size)
        return int(config.num_frames) // frames, height // rows, width // columns

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Raises ValueError for attention that takes no float mask."""
        for layer in layers_of(core) or ():
            if hasattr(layer.attention, "q_proj"):
                check_attention(layer.attention)

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the convolution makes of a video."""
        return strided_grid(self.tubelet(embedding), images.transpose(1, 2))

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The grid of the videos."""
        videos = args[0] if args else next(iter(kwargs.values()))
        check_videos(videos)
        if torch.compiler.is_compiling():
            len(range(videos.shape[1]))  # compile per number of frames too
        return super().input_shape(embedding, args, kwargs)

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens of videos after ``layer`` blocks, and the grid ``(T, H, W)``."""
        check_videos(images)
        tokens = tokens_after(self.blocks(model), layer, lambda: model(images))
        return tokens, self.image_grid(self.embedding(model), images)


class TransformersVivit(Tubes):
    """``VivitModel`` and ``VivitForVideoClassification``, which read the class token."""

    family = "transformers ViViT"

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``VivitModel`` with an attention that takes a mask."""
        layers = layers_of(model) if is_a(model, VIVIT, "VivitModel") else None
        return layers is not None and hasattr(layers[0].attention, "q_proj")


class TransformersVideoMAE(Tubes, OlderTransformersViT):
    """``VideoMAEModel``, also inside its classifier, which averages tubes, and its pre-training model."""

    family = "transformers VideoMAE"

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``VideoMAEModel`` with layers of the older kind."""
        return is_a(model, VIDEOMAE, "VideoMAEModel") and hasattr(model.encoder.layer[0].attention, "attention")

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns whether a head around the model reads single tubes: pre-training, or the first tube as class."""
        around = [m for m in model.modules() if m is not core and any(part is core for part in m.children())]
        first = any(hasattr(m, "classifier") and getattr(m, "fc_norm", None) is None for m in around)
        return first or super().wants_whole(model, core)

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: a classifier averages every tube; heads of single tubes get each."""
        return output_hooks(model, core, self.channels(core), mean=not self.wants_whole(model, core))

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The grid; with ``bool_masked_pos`` only visible tubes come to the blocks, which are not the grid."""
        shape = super().input_shape(embedding, args, kwargs)
        masked = args[1] if len(args) > 1 else kwargs.get("bool_masked_pos")
        return shape if masked is None else replace(shape, ordered=False)


def check_videos(videos: Tensor) -> None:
    """Raises ValueError unless ``videos`` has five dimensions."""
    if videos.dim() != 5:
        hint = " Give one video as video[None]." if videos.dim() == 4 else ""
        raise ValueError(f"Expected videos of shape [B, frames, channels, H, W] (got {list(videos.shape)}).{hint}")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
