"""SigLIP 2 NaFlex of Hugging Face transformers: images of any shape, as patches, in one padded batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import InputShape
from tokengraph.adapters.coarse import SITE, CoarseSite, ours
from tokengraph.adapters.parts.naflex import image_shapes, tokens_of_each
from tokengraph.adapters.parts.pooling import masked_mean, pooled_over
from tokengraph.adapters.transformers.anatomy import is_naflex
from tokengraph.adapters.transformers.outputs import lift_output, with_tokens
from tokengraph.adapters.transformers.vit import TransformersViT


class TransformersNaFlex(TransformersViT):
    """``Siglip2VisionModel``, also inside ``Siglip2Model`` and ``Siglip2ForImageClassification``.

    It takes ``pixel_values [B, N, C*p*p]``, ``pixel_attention_mask [B, N]`` and ``spatial_shapes [B, 2]``. An image's
    result does not depend on the others, and padding enters no cluster, no average and no count. The schedule applies
    to each image's own number of patches: ``8`` removes 8 from each, ``{4: 0.5}`` keeps half of each, and ``{4: 64}``
    keeps 64, or all if there are fewer. The model's own mask is used until tokens are coarsened, then a mask of the
    current tokens.

    ``torch.compile`` breaks the graph where token counts become Python ints, so ``fullgraph=True`` fails.
    """

    family = "transformers Siglip2VisionModel (SigLIP 2 NaFlex)"

    def serves(self, model: Any) -> bool:
        """Returns whether the model is SigLIP 2's vision model."""
        return is_naflex(model)

    def num_prefix(self, model: Any) -> int:
        """0: the model has none."""
        return 0

    def has_class_token(self, model: Any) -> bool:
        """Returns False: the model has none."""
        return False

    def grid(self, model: Any) -> tuple[int, int]:
        """The grid of the position embeddings, a square of ``config.num_patches``; images have their own."""
        side = math.isqrt(int(model.config.num_patches))
        return side, side

    def embedding(self, model: Any) -> nn.Module:
        """The model itself, as its embeddings do not receive the mask."""
        return model

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """Raises ValueError: patches do not tell their grid; see :meth:`input_shape`."""
        raise ValueError("Expected spatial_shapes with the patches (got patches alone).")

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The grid of each image, and the mask of patches.

        Raises:
            ValueError: If the mask and the shapes of the images do not agree.
        """
        patches = _argument(args, kwargs, 0, "pixel_values")
        mask = _argument(args, kwargs, 1, "pixel_attention_mask", "attention_mask")
        shapes = _argument(args, kwargs, 2, "spatial_shapes")
        grids, present = image_shapes(patches.size(1), mask, shapes)
        return InputShape(grids=grids, present=present)

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: the pooling head and classifiers count every patch once; ``lift=True`` lifts other outputs."""
        found: list[tuple[nn.Module, str, Callable[..., Any]]] = []
        head: Any = getattr(core, "head", None)
        if head is not None:
            found.append((head, "input", pool_what_is_left))
        averages = any(hasattr(m, "classifier") and any(part is core for part in m.children()) for m in model.modules())
        return [*found, (core, "output", average_what_is_left if averages else lift_output)]

    def features(self, model: Any, images: Any, layer: int) -> tuple[Any, Any]:
        """Tokens ``[N_b, C]`` and grids ``(H_b, W_b)``, image by image; ``images``: the model's inputs by name.

        Raises:
            TypeError: If ``images`` is no mapping.
            ValueError: If the model has no such layer.
        """
        if not isinstance(images, Mapping):
            raise TypeError(
                "Expected a mapping with pixel_values, pixel_attention_mask and spatial_shapes, as the processor makes "
                f"it (got {type(images).__name__})."
            )
        grids = tuple((int(h), int(w)) for h, w in images["spatial_shapes"].tolist())
        inputs = [images.get(name) for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")]
        return tokens_of_each(self.blocks(model), layer, lambda: model(*inputs), grids, 0), grids


@ours
def pool_what_is_left(module: nn.Module, args: Any) -> Any:
    """Forward pre-hook of a pooling head: gives it every patch with its cluster's features, or the kept tokens."""
    site: CoarseSite = module.__dict__[SITE]
    lineage = site.trace.lineage()
    if not (lineage.coarse or site.trace.shares):
        return args
    tokens, there = pooled_over(site.trace, args[0])
    if lineage.merged:
        return tokens, *args[1:]
    return tokens, None if there is None else there > 0, *args[2:]


@ours
def average_what_is_left(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook below a classifier that averages patches: its mean counts every current patch once.

    After merging every patch has its cluster's features. After pruning every row is the mean of the kept tokens, and
    so is the classifier's average over the rows.
    """
    site: CoarseSite = module.__dict__[SITE]
    lineage = site.trace.lineage()
    if not (lineage.coarse or site.trace.shares):
        return output

    def whole(tokens: Tensor) -> Tensor:
        rows, there = pooled_over(site.trace, tokens)
        if lineage.merged:
            return rows
        mean = masked_mean(rows, site.trace.valid() if there is None else there)
        return mean[:, None].expand(-1, lineage.start.width, -1)

    return with_tokens(output, whole)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, *names: str) -> Any:
    """An argument of the model's forward, given by position or by name."""
    return args[place] if len(args) > place else next((kwargs[n] for n in names if n in kwargs), None)
