"""Adapter for the vision towers of open_clip."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import is_a, strided_grid
from tokengraph.adapters.coarse import SITE, CoarseBlock, CoarseSite
from tokengraph.adapters.parts.intermediates import WithIntermediates, finished_blocks, lift_for
from tokengraph.adapters.parts.multihead import MultiheadAdapter, swap_unless_batch_first
from tokengraph.adapters.parts.pooling import masked_mean, pooled_over

ORIGIN = "open_clip.transformer"


class OpenClipBlock(CoarseBlock):
    """``open_clip.transformer.ResidualAttentionBlock`` that can coarsen its tokens."""

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Takes ``[B, P+n, C]``, or ``[P+n, B, C]`` where it is not ``batch_first``."""
        if k_x is not None or v_x is not None or attn_mask is not None:
            raise ValueError("Expected self-attention without a mask, as vision towers have it (got k_x or attn_mask).")
        attention: Any = self.attn  # type: ignore[attr-defined]
        return swap_unless_batch_first(attention, self.coarse(swap_unless_batch_first(attention, q_x)))


class OpenClipModel(WithIntermediates):
    """``open_clip.transformer.VisionTransformer`` with coarsened blocks."""

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pools as if every input patch had its cluster's features; ``lift=True`` also returns a token for each."""
        site: CoarseSite = getattr(self, SITE)
        attends = self.attn_pool is not None  # type: ignore[attr-defined]
        if site.lift:
            x = site.trace.lift_sequence(x)
        elif attends or self.pool_type != "tok":  # type: ignore[attr-defined]
            x, there = pooled_over(site.trace, x)
            if attends and there is not None:
                raise ValueError("Expected no attention pooling where tokens are masked (got one).")
        return super()._pool(x)  # type: ignore[misc]

    def _global_pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pools as open_clip does, and leaves masked tokens out of the average."""
        site: CoarseSite = getattr(self, SITE)
        pooled, tokens = super()._global_pool(x)  # type: ignore[misc]
        if self.pool_type != "avg":  # type: ignore[attr-defined]
            return pooled, tokens
        lineage, decisions = site.trace.lineage(), site.trace.shares
        there = decisions[-1] if decisions else lineage.now.valid
        if there is None or lineage.merged or there.shape != tokens.shape[:2]:  # they were lifted
            return pooled, tokens
        return masked_mean(tokens, there), tokens

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Any]:
        """As in open_clip, with every map lifted to full resolution from the tokens of its layer.

        Tokens that a strategy stored have not passed the final norm; if there are any, the norm is applied after
        lifting.
        """
        site: CoarseSite = getattr(self, SITE)
        later = normalize_intermediates and site.stores
        norm: Any = self.ln_post if later else None  # type: ignore[attr-defined]
        lift, normalize = lift_for(site.trace, output_fmt, norm), normalize_intermediates and not later
        out = super().forward_intermediates(  # type: ignore[misc]
            x, indices, stop_early, normalize, intermediates_only, "NLC", output_extra_tokens
        )
        layers = finished_blocks(indices, site.trace.depth)
        pairs = zip(out["image_intermediates"], layers, strict=True)
        out["image_intermediates"] = [lift(t, layer=i, replenish=not normalize) for t, i in pairs]
        if later and "image_intermediates_prefix" in out:
            out["image_intermediates_prefix"] = [norm(t) for t in out["image_intermediates_prefix"]]
        return out


class OpenClipViT(MultiheadAdapter):
    """open_clip's ``VisionTransformer`` with ``ResidualAttentionBlock``; in a CLIP model only its vision tower."""

    family = "open_clip VisionTransformer (CLIP vision towers)"
    block_mixin = OpenClipBlock
    model_mixin = OpenClipModel
    norm, attention, after = "ln_1", "attn", "ls_1"

    def serves(self, model: Any) -> bool:
        """Returns whether open_clip's ``VisionTransformer`` is among its classes."""
        return is_a(model, ORIGIN, "VisionTransformer")

    def blocks(self, model: Any) -> list[nn.Module]:
        """``model.transformer.resblocks``, all of class ``ResidualAttentionBlock``."""
        blocks: list[nn.Module] = list(model.transformer.resblocks)
        for i, block in enumerate(blocks):
            if not is_a(block, ORIGIN, "ResidualAttentionBlock"):
                raise ValueError(
                    f"Expected blocks of class ResidualAttentionBlock (got {type(block).__name__} at {i})."
                )
        if not hasattr(model, "_pool"):
            raise ValueError("Expected open_clip whose VisionTransformer pools in a method (got an older one).")
        return self.check(blocks)

    def num_prefix(self, model: Any) -> int:
        """1: the class token."""
        return 1

    def has_class_token(self, model: Any) -> bool:
        """Returns True: every such tower has one."""
        return True

    def channels(self, model: Any) -> int:
        """``model.transformer.width``."""
        return int(model.transformer.width)

    def grid(self, model: Any) -> tuple[int, int]:
        """``model.grid_size``."""
        height, width = model.grid_size
        return int(height), int(width)

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + ls_2(mlp(ln_2(x)))``."""
        x = swap_unless_batch_first(block.attn, x)
        return swap_unless_batch_first(block.attn, x + block.ls_2(block.mlp(block.ln_2(x))))

    def embedding(self, model: Any) -> nn.Module:
        """``model.conv1``."""
        return model.conv1

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the patch convolution makes."""
        return strided_grid(embedding, images)
