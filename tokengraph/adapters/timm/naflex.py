"""timm's ``NaFlexVit``: images of any shape, as patches, in one padded batch; or plain images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, InputShape, is_a
from tokengraph.adapters.coarse import SITE, CoarseSite
from tokengraph.adapters.parts.naflex import image_shapes, tokens_of_each
from tokengraph.adapters.parts.pooling import masked_mean, pooled_over
from tokengraph.adapters.timm.vit import TimmModel, TimmViT
from tokengraph.edges.grid import Grids

ORIGIN = "timm.models.naflexvit"


class TimmNaFlexModel(TimmModel):
    """``timm.models.naflexvit.NaFlexVit`` with coarsened blocks."""

    def forward_features(self, patches: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's. Patches give a dict, whose ``patch_valid [B, n]`` is True at tokens and False at padding.

        Raises:
            ValueError: If ``attn_mask`` is given together with patches.
        """
        site: CoarseSite = getattr(self, SITE)
        trace = site.trace
        own = kwargs.get("attn_mask", args[2] if len(args) > 2 else None)
        if own is not None and (args or kwargs.get("patch_coord") is not None):
            raise ValueError("Expected no attn_mask together with patches (got one). Padding is masked without it.")
        out = super(TimmModel, self).forward_features(patches, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(out, dict):
            return trace.lift_sequence(out) if site.lift else out
        if site.lift:
            return {**out, "patches": trace.lift_sequence(out["patches"])}
        return {**out, "patch_valid": trace.valid()} if trace.lineage().coarse else out

    def _pool(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """Pools as if every patch had its cluster's features; leaves dropped patches and padding out."""
        site: CoarseSite = getattr(self, SITE)
        lineage, decisions, prefix = site.trace.lineage(), site.trace.shares, site.trace.num_prefix
        plain = super()._pool  # type: ignore[misc]
        if x.size(1) != prefix + lineage.now.width or not (lineage.coarse or decisions):
            return plain(x, pool_type, patch_valid)
        x, there = pooled_over(site.trace, x)
        if not decisions or lineage.merged:
            return plain(x, pool_type, there)
        pooled = self.global_pool if pool_type is None else pool_type  # type: ignore[attr-defined]
        if pooled != "avg" or self.attn_pool is not None or self.pool_include_prefix:  # type: ignore[attr-defined]
            return plain(x, pool_type, decisions[-1] > 0)
        return masked_mean(x[:, prefix:], decisions[-1])  # gives decisions a gradient


class TimmNaFlex(TimmViT):
    """timm's ``NaFlexVit`` with plain blocks, given patches or images.

    Patches come as timm's collator makes them: ``patches [B, N, p*p*C]``, ``patch_coord [B, N, 2]`` as (y, x) and
    ``patch_valid [B, N]``. An image's result does not depend on the others; see
    :class:`tokengraph.adapters.transformers.naflex.TransformersNaFlex`.
    """

    family = "timm NaFlexVit with Block"
    model_mixin = TimmNaFlexModel

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``NaFlexVit``."""
        return is_a(model, ORIGIN, "NaFlexVit")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.blocks``, all of class ``Block``, without rotary embeddings or patch dropout."""
        if not hasattr(model, "_forward_embeds"):
            raise ValueError("Expected a newer timm for NaFlexVit (got one whose embeddings are not told of padding).")
        rope, dropout = (getattr(model, name, None) for name in ("rope", "patch_drop"))
        if rope is not None or dropout is not None:
            what = "patch dropout" if rope is None else "rotary embeddings"
            raise ValueError(f"Expected a NaFlexVit without rotary embeddings and patch dropout (got one with {what}).")
        return super().blocks(model)

    def grid(self, model: Any) -> tuple[int, int]:
        """The grid of the position embeddings; images have their own."""
        grid: Any = getattr(model.embeds, "pos_embed_grid_size", None) or (16, 16)
        return int(grid[0]), int(grid[1])

    def has_class_token(self, model: Any) -> bool:
        """Returns whether the model was made with one."""
        return bool(model.has_class_token)

    def embedding(self, model: Any) -> nn.Module:
        """``model.embeds``."""
        return model.embeds

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """Of images their grid; of patches the grid of each image, and the mask of patches.

        Raises:
            ValueError: If patches are not the whole grid of each image, row by row, then padding.
        """
        given: list[Any] = [*args, *(kwargs.get(n) for n in ("x", "patch_coord", "patch_valid")[len(args) :])]
        patches, coord, valid = given
        if coord is None:
            return InputShape(self.image_grid(embedding, patches))
        grids, present = _shapes(coord, valid)
        return InputShape(grids=grids, present=present)

    def features(self, model: Any, images: Any, layer: int) -> tuple[Any, Any]:
        """As :meth:`Adapter.features`; of a dict of patches lists of tokens ``[P+N_b, C]`` and grids, one per image."""
        if not isinstance(images, Mapping):
            return Adapter.features(self, model, images, layer)
        grids, _ = _shapes(images["patch_coord"], images.get("patch_valid"))
        return tokens_of_each(self.blocks(model), layer, lambda: model(images), grids, self.num_prefix(model)), grids


def _shapes(coord: Tensor, valid: Tensor | None) -> tuple[Grids, Tensor | None]:
    """The grids, and the mask of patches; ``None``: no padding."""
    inside = coord if valid is None else coord * valid[..., None].to(coord.dtype)
    shapes = inside.amax(dim=1) + 1
    grids, present = image_shapes(coord.size(1), valid, shapes)
    place = torch.arange(coord.size(1), device=coord.device)
    reading = (coord[..., 0] * shapes[:, 1:] + coord[..., 1]).long()
    if not torch.equal(reading if present is None else torch.where(present, reading, place), place.expand_as(reading)):
        raise ValueError("Expected patches in reading order, row by row (got another order in patch_coord).")
    return grids, present
