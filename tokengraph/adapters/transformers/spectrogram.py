"""The Audio Spectrogram Transformer of transformers: patches of a spectrogram are a grid like any other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a, strided_grid, tokens_after
from tokengraph.adapters.transformers.anatomy import layers_of, patches_of
from tokengraph.adapters.transformers.supported import check_attention
from tokengraph.adapters.transformers.vit import TransformersViT

ORIGIN = "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer"


class TransformersSpectrogram(TransformersViT):
    """``ASTModel`` and ``ASTForAudioClassification``, whose grid is (frequency, time)."""

    family = "transformers Audio Spectrogram Transformer (AST)"

    def serves(self, model: Any) -> bool:
        """Returns whether the model is an ``ASTModel`` with an attention that takes a mask."""
        layers = layers_of(model) if is_a(model, ORIGIN, "ASTModel") else None
        return layers is not None and hasattr(layers[0].attention, "q_proj")

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Raises ValueError for attention that takes no float mask."""
        for layer in layers_of(core) or ():
            check_attention(layer.attention)

    def grid(self, model: Any) -> tuple[int, int]:
        """``(frequency, time)`` of the patches, which may overlap."""
        height, width = model.embeddings.get_shape(model.config)
        return int(height), int(width)

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid of spectrograms ``[B, time, frequency]``, which the model transposes."""
        return strided_grid(patches_of(embedding), images.transpose(-1, -2))

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens of spectrograms ``[B, time, frequency]`` after ``layer`` blocks, and the grid.

        Raises:
            ValueError: If they have another number of dimensions.
        """
        if images.dim() != 3:
            raise ValueError(f"Expected spectrograms of shape [B, time, frequency] (got {list(images.shape)}).")
        tokens = tokens_after(self.blocks(model), layer, lambda: model(images))
        return tokens, self.image_grid(model.embeddings, images)
