"""timm's Hiera: the blocks of its third stage, whose attention sees all tokens; then every token for the last stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, InputShape, is_a
from tokengraph.adapters.coarse import CoarseBlock
from tokengraph.adapters.parts.heads import split_qkv, statistics_of_qkv
from tokengraph.adapters.parts.hooks import check_called_alone
from tokengraph.adapters.parts.last_block import lift_block
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.stats import AttentionStats


class HieraBlock(CoarseBlock):
    """``timm.models.hiera.HieraBlock`` that can coarsen its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Takes ``[B, n, C]``."""
        return self.coarse(x)


class TimmHiera(Adapter):
    """timm's ``Hiera``, in the longest run of blocks that neither pool nor attend within mask units.

    These are most blocks of the third stage. The block behind them pools units of tokens, so every token returns in
    front of it with the features of its cluster. Tokens lie in the order of mask units, not row by row: strategies that
    need the grid refuse, others work. The stock attention runs until a mask is needed.
    """

    family = "timm Hiera (third stage)"
    block_mixin = HieraBlock

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``Hiera``."""
        return is_a(model, "timm.models.hiera", "Hiera")

    def blocks(self, model: Any) -> list[nn.Module]:
        """The longest run of plain blocks.

        Raises:
            ValueError: If there is none.
        """
        runs: list[list[nn.Module]] = [[]]
        for block in model.blocks:
            plain = not (block.do_expand or block.attn.use_mask_unit_attn or block.attn.q_stride > 1)
            runs = [*runs[:-1], [*runs[-1], block]] if plain else [*runs, []]
        longest = runs[0]
        for run in runs:  # no max by a key, which torch.compile does not know
            longest = run if len(run) > len(longest) else longest
        if not longest:
            name = type(model).__name__
            raise ValueError(f"Expected blocks with global attention and without pooling (got none in {name}).")
        return longest

    def rest(self, model: Any) -> list[nn.Module]:
        """All other blocks."""
        ours = self.blocks(model)
        return [b for b in model.blocks if all(b is not own for own in ours)]

    def num_prefix(self, model: Any) -> int:
        """0: the model has none."""
        return 0

    def has_class_token(self, model: Any) -> bool:
        """Returns False: the model has none."""
        return False

    def channels(self, model: Any) -> int:
        """Channels of these blocks."""
        return int(self.blocks(model)[0].dim)  # type: ignore[arg-type]

    def grid(self, model: Any) -> tuple[int, ...]:
        """The grid of tokens in these blocks: that of the embedding, halved by each pooling before them."""
        first, factor = self.blocks(model)[0], 1
        sides = list(model.tokens_spatial_shape)
        for block in model.blocks:
            if block is first:
                break
            factor *= int(block.attn.q_stride)
        stride = model.unroll.schedule[0] if model.unroll.schedule else (1,) * len(sides)
        while factor > 1:
            sides = [side // by for side, by in zip(sides, stride, strict=True)]
            for by in stride:
                factor //= by
        return tuple(sides)

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """``x + drop_path1(ls1(attn(norm1(x))))``, by the attention's own projections if there is a mask."""
        attn, y = block.attn, block.norm1(x)
        if mask is None:
            return x + block.drop_path1(block.ls1(attn(y)))
        check_called_alone(attn, "it takes no mask")
        q, k, v = split_qkv(attn.qkv(y), attn.heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # type: ignore[arg-type]
        return x + block.drop_path1(block.ls1(attn.proj(y.transpose(1, 2).flatten(2))))

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + drop_path2(ls2(mlp(norm2(x))))``."""
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def kept(self, block: Any) -> dict[str, nn.Module]:
        """``attn.qkv``."""
        return {"qkv": block.attn.qkv}

    def statistics(
        self, block: Any, kept: dict[str, Tensor], num_prefix: int, bias: Tensor | None, side: dict[str, Any]
    ) -> AttentionStats:
        """From the kept output of ``attn.qkv``."""
        attn = block.attn
        return statistics_of_qkv(kept["qkv"], attn.heads, float(attn.scale), num_prefix, bias)

    def embedding(self, model: Any) -> nn.Module:
        """The model itself, which knows the grid of its stages."""
        return model

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid of the model: it takes one size of images."""
        return self.grid(embedding)

    def input_shape(self, embedding: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputShape:
        """The grid, whose tokens do not lie row by row."""
        return InputShape(self.grid(embedding), ordered=False)

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """A hook by which the last of these blocks gives every token."""
        return [(self.blocks(core)[-1], "output", lift_block)]

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns True: the blocks behind pool units of tokens."""
        return True
