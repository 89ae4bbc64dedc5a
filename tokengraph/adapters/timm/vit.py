"""timm's plain vision transformers: ViT, DeiT (also distilled), DeiT-III, CLIP and SigLIP towers, GAP, DINOv2."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, check_images, count_finished, is_a
from tokengraph.adapters.coarse import SITE, CoarseBlock, CoarseSite
from tokengraph.adapters.parts.heads import query_of_first, statistics_of_qkv
from tokengraph.adapters.parts.intermediates import WithIntermediates, finished_blocks, lift_for
from tokengraph.adapters.parts.pooling import masked_mean, pooled_over
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats


class TimmBlock(CoarseBlock):
    """``timm.models.vision_transformer.Block`` that can coarsen its tokens."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Takes ``[B, P+n, C]``; ``attn_mask`` is over the uncoarsened sequence."""
        if is_causal:
            raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
        return self.coarse(x, attn_mask)


class TimmModel(WithIntermediates):
    """``timm.models.vision_transformer.VisionTransformer`` with coarsened blocks."""

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens after the final norm: ``[B, P+n, C]``, or ``[B, P+N, C]`` with ``attach(..., lift=True)``."""
        site: CoarseSite = getattr(self, SITE)
        x = super().forward_features(x, *args, **kwargs)  # type: ignore[misc]
        return site.trace.lift_sequence(x) if site.lift else x

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pools as if every input patch had its cluster's features; leaves dropped patches out.

        ``x`` must come from the last run.
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

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As timm's, with every map lifted to full resolution from the tokens of its layer.

        Tokens that a strategy stored have not passed the final norm; if there are any, the norm is applied after
        lifting.
        """
        site: CoarseSite = getattr(self, SITE)
        plain = super().forward_intermediates  # type: ignore[misc]
        asked = inspect.signature(plain).bind(x, *args, **kwargs)
        asked.apply_defaults()
        norm: bool = asked.arguments["norm"]
        later = norm and site.stores
        lift = lift_for(site.trace, asked.arguments["output_fmt"], self.norm if later else None)  # type: ignore[attr-defined]
        asked.arguments |= {"output_fmt": "NLC", "norm": norm and not later}
        out = plain(*asked.args, **asked.kwargs)
        layers = finished_blocks(asked.arguments["indices"], len(self.blocks))  # type: ignore[attr-defined]
        ran_to_the_end = not asked.arguments["stop_early"] or layers[-1] == site.trace.depth

        def prefix(tokens: Tensor) -> Tensor:
            return self.norm(tokens) if later else tokens  # type: ignore[attr-defined]

        def lifted(tokens: Any, layer: int) -> Any:
            if isinstance(tokens, tuple):
                return lifted(tokens[0], layer), *(t if t is None else prefix(t) for t in tokens[1:])
            return lift(tokens, layer=layer, replenish=later or not norm)

        def whole(tokens: Tensor) -> Tensor:
            return site.trace.lift_sequence(tokens) if site.lift and ran_to_the_end else tokens

        if isinstance(out, dict):
            out["image_intermediates"] = [lifted(t, i) for t, i in zip(out["image_intermediates"], layers, strict=True)]
            if "image_intermediates_prefix" in out:
                out["image_intermediates_prefix"] = [prefix(t) for t in out["image_intermediates_prefix"]]
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

    def serves(self, model: Any) -> bool:
        """Returns whether the model is timm's ``VisionTransformer``."""
        return is_a(model, "timm.models.vision_transformer", "VisionTransformer")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.blocks``, all of class ``Block`` with attention of class ``Attention``."""
        blocks: list[nn.Module] = list(model.blocks)
        for i, block in enumerate(blocks):
            kind = type(block)
            if not is_a(block, "timm.models.vision_transformer", "Block"):
                raise ValueError(
                    f"Expected blocks of class Block (got {kind.__name__} at {i}). Parallel and post-norm blocks "
                    "cannot be coarsened between attention and MLP."
                )
            attention = type(block.attn)
            if not is_a(block.attn, "timm.layers.attention", "Attention", "timm.models.vision_transformer"):
                raise ValueError(f"Expected attention of class Attention (got {attention.__name__} in block {i}).")
        return blocks

    def num_prefix(self, model: Any) -> int:
        """Number of class, distillation and register tokens."""
        return int(model.num_prefix_tokens)

    def channels(self, model: Any) -> int:
        """``model.embed_dim``."""
        return int(model.embed_dim)

    def grid(self, model: Any) -> tuple[int, int]:
        """``model.patch_embed.grid_size``."""
        height, width = model.patch_embed.grid_size
        return int(height), int(width)

    def has_class_token(self, model: Any) -> bool:
        """Returns whether the model has a ``cls_token``."""
        return model.cls_token is not None

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(ls1(attn(norm1(x))))``."""
        return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=mask)))

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + drop_path2(ls2(mlp(norm2(x))))``."""
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """``attn.qkv``."""
        return {"qkv": block.attn.qkv}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the kept output of ``attn.qkv``, through the norms of queries and keys."""
        attn = block.attn
        norms = attn.q_norm, attn.k_norm
        return statistics_of_qkv(kept["qkv"], attn.num_heads, float(attn.scale), num_prefix, bias, norms)

    def class_logits(self, block: Any, x: Tensor) -> Callable[[], Tensor] | None:
        """From the weights of ``attn.qkv``, where it is a plain linear layer and queries and keys have no norms."""
        attn = block.attn
        if any(not isinstance(getattr(attn, name, None), nn.Identity) for name in ("q_norm", "k_norm")):
            return None
        return query_of_first(block.norm1, attn.qkv, attn.num_heads, x)

    def embedding(self, model: Any) -> nn.Module:
        """``model.patch_embed``."""
        return model.patch_embed

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the patch embedding makes."""
        height, width = embedding.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        return height, width

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, ...]]:
        """From ``forward_intermediates``, before the final norm; for layer 0 from a hook on the first block."""
        check_images(images)
        finished = count_finished(layer, len(model.blocks))
        if finished == 0:
            return super().features(model, images, 0)
        with torch.no_grad():
            out = model.forward_intermediates(
                images,
                indices=[finished - 1],
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
                stop_early=True,
            )[0]
        tokens = torch.cat([out[1], out[0]], dim=1) if isinstance(out, tuple) else out
        return tokens, self.image_grid(model.patch_embed, images)
