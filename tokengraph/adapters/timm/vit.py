"""timm's plain vision transformers: ViT, DeiT (also distilled), DeiT-III, CLIP and SigLIP towers, GAP, DINOv2."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, is_a
from tokengraph.adapters.block import Coarse, CoarseBlock
from tokengraph.adapters.intermediates import taken
from tokengraph.adapters.pooling import masked_mean, pooled_over
from tokengraph.adapters.site import SITE, Site
from tokengraph.nn.masked_attention import KeepMask
from tokengraph.select.attention import AttentionStats


class TimmBlock(CoarseBlock):
    """``timm.models.vision_transformer.Block`` with a coarsening in it."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Takes ``[B, P+n, C]``; ``attn_mask`` is over the uncoarsened sequence."""
        if is_causal:
            raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
        return self.coarse(x, attn_mask)


class TimmModel(Coarse):
    """``timm.models.vision_transformer.VisionTransformer`` around coarsened blocks."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens after the final norm: ``[B, P+n, C]``, or at full resolution where ``attach(lift=True)`` said so."""
        site: Site = getattr(self, SITE)
        x = super().forward_features(x, *args, **kwargs)  # type: ignore[misc]
        return site.trace.lift_sequence(x) if site.recipe.lift else x

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pools as if every input patch had its cluster's features; pruned and dropped patches have no say.

        ``x`` are features of the last run.
        """
        trace = getattr(self, SITE).trace
        pooled = self.global_pool if pool_type is None else pool_type  # type: ignore[attr-defined]
        attends = self.attn_pool is not None  # type: ignore[attr-defined]
        if pooled in ("token", "") and not attends:
            return super().pool(x, pool_type)  # type: ignore[misc]
        x, there = pooled_over(trace, x)
        if there is None:
            return super().pool(x, pool_type)  # type: ignore[misc]
        if pooled != "avg" or attends or getattr(self, "pool_include_prefix", False):
            raise ValueError(
                f"Expected pooling by class token or plain average where tokens are masked (got {pooled!r})."
            )
        return masked_mean(x[:, trace.num_prefix :], there)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the schedule was made for the blocks there are."""
        raise RuntimeError("Expected a model to prune that has no strategy (got an attached one). Remove it first.")

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, every map at full resolution: each is lifted by the coarsenings up to its layer."""
        site: Site = getattr(self, SITE)
        plain = super().forward_intermediates  # type: ignore[misc]
        asked = inspect.signature(plain).bind(x, *args, **kwargs)
        asked.apply_defaults()
        form = asked.arguments["output_fmt"]
        if form not in ("NCHW", "NLC"):
            raise ValueError(f"Expected output_fmt to be NCHW or NLC (got {form!r}).")
        asked.arguments["output_fmt"] = "NLC"
        out = plain(*asked.args, **asked.kwargs)
        layers = taken(asked.arguments["indices"], len(self.blocks))  # type: ignore[attr-defined]
        ran_to_the_end = not asked.arguments["stop_early"] or layers[-1] == site.trace.depth

        def lifted(tokens: Any, layer: int) -> Any:
            if isinstance(tokens, tuple):
                return lifted(tokens[0], layer), *tokens[1:]
            lift = site.trace.as_map if form == "NCHW" else site.trace.lift
            return lift(tokens, layer=layer, replenish=not asked.arguments["norm"])

        def whole(tokens: Tensor) -> Tensor:
            return site.trace.lift_sequence(tokens) if site.recipe.lift and ran_to_the_end else tokens

        if isinstance(out, dict):
            out["image_intermediates"] = [lifted(t, i) for t, i in zip(out["image_intermediates"], layers, strict=True)]
            if "image_features" in out:
                out["image_features"] = whole(out["image_features"])
            return out
        if asked.arguments["intermediates_only"]:
            return [lifted(t, i) for t, i in zip(out, layers, strict=True)]
        return whole(out[0]), [lifted(t, i) for t, i in zip(out[1], layers, strict=True)]


class TimmViT(Adapter):
    """timm >= 1.0.16, ``VisionTransformer`` with pre-norm ``Block``."""

    family = "timm VisionTransformer (ViT, DeiT, DeiT-III, CLIP, SigLIP, GAP, DINOv2) with Block"
    block_mixin = TimmBlock
    model_mixin = TimmModel

    def serves(self, model: nn.Module) -> bool:
        """Whether ``VisionTransformer`` is among its classes."""
        return is_a(model, "timm.models.vision_transformer", "VisionTransformer")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """``model.blocks``, all of class ``Block`` with attention of class ``Attention``."""
        blocks: list[nn.Module] = list(model.blocks)  # type: ignore[arg-type]
        for i, block in enumerate(blocks):
            kind = type(block)
            if not is_a(block, "timm.models.vision_transformer", "Block"):
                raise ValueError(
                    f"Expected blocks of class Block (got {kind.__name__} at {i}). Blocks whose attention and MLP run "
                    "in parallel or whose norms come last have no place between the halves."
                )
            attention = type(block.attn)
            if not is_a(block.attn, "timm.layers.attention", "Attention", "timm.models.vision_transformer"):
                raise ValueError(f"Expected attention of class Attention (got {attention.__name__} in block {i}).")
        return blocks

    def num_prefix(self, model: nn.Module) -> int:
        """Class, distillation and register tokens."""
        return int(model.num_prefix_tokens)  # type: ignore[arg-type]

    def channels(self, model: nn.Module) -> int:
        """``model.embed_dim``."""
        return int(model.embed_dim)  # type: ignore[arg-type]

    def grid(self, model: nn.Module) -> tuple[int, int]:
        """Of the patch embedding."""
        height, width = model.patch_embed.grid_size  # type: ignore[union-attr,misc]
        return int(height), int(width)

    def has_class_token(self, model: nn.Module) -> bool:
        """Whether there is a ``cls_token``."""
        return model.cls_token is not None

    def attend(self, block: nn.Module, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(ls1(attn(norm1(x))))``."""
        return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=mask)))  # type: ignore[operator]

    def feed(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x + drop_path2(ls2(mlp(norm2(x))))``."""
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[operator]

    def watched(self, block: nn.Module) -> dict[str, nn.Module]:
        """``attn.qkv``."""
        return {"qkv": block.attn.qkv}  # type: ignore[union-attr,dict-item]

    def statistics(
        self, block: nn.Module, seen: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the kept output of ``attn.qkv``, through the norms of queries and keys."""
        attn: Any = block.attn

        def project() -> tuple[Tensor, Tensor]:
            heads = seen["qkv"].unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            return attn.q_norm(heads[0]), attn.k_norm(heads[1])

        return AttentionStats(project, float(attn.scale), num_prefix, bias)

    def embedding(self, model: nn.Module) -> nn.Module:
        """``model.patch_embed``."""
        return model.patch_embed  # type: ignore[return-value]

    def image_grid(self, embedding: nn.Module, images: Tensor) -> tuple[int, int]:
        """As the patch embedding counts."""
        height, width = embedding.dynamic_feat_size((images.shape[-2], images.shape[-1]))  # type: ignore[operator]
        return height, width

    def features(self, model: nn.Module, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, int]]:
        """By ``forward_intermediates``, before the final norm."""
        depth = len(model.blocks)  # type: ignore[arg-type]
        if not -depth <= layer < depth:
            raise ValueError(f"Expected a layer in [-{depth}, {depth}) (got {layer}).")
        with torch.no_grad():
            out = model.forward_intermediates(  # type: ignore[operator]
                images,
                indices=[layer % depth],
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
                stop_early=True,
            )[0]
        tokens = torch.cat([out[1], out[0]], dim=1) if isinstance(out, tuple) else out
        return tokens, self.image_grid(model.patch_embed, images)  # type: ignore[arg-type]
