"""Adapter for ``nn.TransformerEncoder`` in a user's own model; the user names its layers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import strided_grid
from tokengraph.adapters.coarse import SITE, CoarseBlock, CoarseSite
from tokengraph.adapters.parts.multihead import MultiheadAdapter, swap_unless_batch_first
from tokengraph.maps.lineage import Lineage


class EncoderLayer(CoarseBlock):
    """``nn.TransformerEncoderLayer`` that can coarsen its tokens."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Takes ``[B, P+n, C]``, or ``[P+n, B, C]`` where it is not ``batch_first``.

        Both masks are over the uncoarsened sequence, as torch takes them: True or ``-inf`` bars a key.
        """
        if is_causal:
            raise ValueError("Expected is_causal=False (got True): clusters have no order in time.")
        if src.dim() != 3 or src.is_nested:
            raise ValueError(f"Expected a batch of sequences of one length (got {src.dim()} dimensions, or nested).")
        site: CoarseSite = getattr(self, SITE)
        attention: Any = self.self_attn  # type: ignore[attr-defined]
        x = swap_unless_batch_first(attention, src)
        mask = _joined(src_mask, src_key_padding_mask, x, attention.num_heads)
        x = self.coarse(x, mask, stock={"src_mask": src_mask, "src_key_padding_mask": src_key_padding_mask})
        if site.lift and site.index + 1 == site.trace.depth:
            x = _lifted(site, x)
        return swap_unless_batch_first(attention, x)


class EncoderLayers(MultiheadAdapter):
    """Adapter for your own model whose blocks are pre-norm ``nn.TransformerEncoderLayer``.

    Pass it as ``attach(model, ..., adapter=EncoderLayers(...))``. In blocks that need no mask and where the strategy
    does not act, the stock layer runs, with torch's inference fast path if it applies. With ``lift=True`` the last
    layer returns one token for each patch, as a head that pools patches expects.

    Args:
        layers: Path in the model of the ``nn.TransformerEncoder``, or of the list of its layers, such as ``"encoder"``.
        num_prefix: P, the number of tokens in front of the patches.
        grid: ``(H, W)`` in patches; patches lie row by row.
        embedding: Path of the module that turns images into patches. If it is an ``nn.Conv2d``, the grid follows the
            size of the images. ``None``: the grid is always ``grid``.
        class_token: Whether the first token is a class token; ``None``: if there are prefix tokens.

    Raises:
        ValueError: If ``grid`` is not two numbers of at least 1, or ``num_prefix`` is negative.
        TypeError: If ``grid`` is missing, or an argument is of another kind.

    Example:
        >>> from tokengraph import attach
        >>> layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        >>> model = nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)).eval()
        >>> with attach(model, "tome", 4, adapter=EncoderLayers("0", num_prefix=0, grid=(4, 4))) as handle:
        ...     model(torch.randn(2, 16, 32)).shape
        torch.Size([2, 4, 32])
    """

    family = "nn.TransformerEncoderLayer of a model of your own"
    block_mixin = EncoderLayer
    norm, attention, after = "norm1", "self_attn", "dropout1"

    def __init__(
        self,
        layers: str,
        *,
        num_prefix: int,
        grid: tuple[int, int],
        embedding: str | None = None,
        class_token: bool | None = None,
    ) -> None:
        if not isinstance(layers, str) or not isinstance(embedding, str | None):
            raise TypeError(f"Expected paths of layers and embedding as str (got {layers!r} and {embedding!r}).")
        if isinstance(num_prefix, bool) or not isinstance(num_prefix, Integral):
            raise TypeError(f"Expected num_prefix as an int (got {num_prefix!r}).")
        if not isinstance(grid, Sequence) or not all(isinstance(side, Integral) for side in grid):
            raise TypeError(
                f"Expected the grid of the patches as two ints (H, W) (got {grid!r}). For 224 px and patches of 16 px "
                "it is (14, 14)."
            )
        if num_prefix < 0 or len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"Expected num_prefix >= 0 and a grid (H, W) (got {num_prefix} and {grid}).")
        self.layers = layers
        self.prefix = num_prefix
        self.patches = (int(grid[0]), int(grid[1]))
        self.path = embedding
        self.class_token = num_prefix > 0 if class_token is None else class_token

    def serves(self, model: Any) -> bool:
        """Returns whether the model has modules at the given paths."""
        return _part(model, self.layers) is not None and (self.path is None or _part(model, self.path) is not None)

    def blocks(self, model: Any) -> list[nn.Module]:
        """The layers, all of them pre-norm ``nn.TransformerEncoderLayer``."""
        found = _part(model, self.layers)
        found = getattr(found, "layers", found)
        blocks: list[nn.Module] = list(found) if isinstance(found, nn.ModuleList | nn.Sequential) else []
        if not blocks:
            raise ValueError(f"Expected layers at {self.layers!r} (got {type(found).__name__}).")
        for i, block in enumerate(blocks):
            if not isinstance(block, nn.TransformerEncoderLayer):
                raise ValueError(f"Expected nn.TransformerEncoderLayer (got {type(block).__name__} at {i}).")
            if not block.norm_first:
                raise ValueError(
                    f"Expected norm_first=True (got False at {i}). In a post-norm layer tokens cannot be "
                    "coarsened between attention and MLP."
                )
        return self.check(blocks)

    def num_prefix(self, model: Any) -> int:
        """As given."""
        return self.prefix

    def has_class_token(self, model: Any) -> bool:
        """As given."""
        return self.class_token

    def channels(self, model: Any) -> int:
        """``self_attn.embed_dim``."""
        return int(self.blocks(model)[0].self_attn.embed_dim)  # type: ignore[union-attr,arg-type]

    def grid(self, model: Any) -> tuple[int, int]:
        """As given."""
        return self.patches

    def feed(self, block: Any, x: Tensor) -> Tensor:
        """``x + dropout2(linear2(dropout(activation(linear1(norm2(x))))))``."""
        x = swap_unless_batch_first(block.self_attn, x)
        y = block.linear2(block.dropout(block.activation(block.linear1(block.norm2(x)))))
        return swap_unless_batch_first(block.self_attn, x + block.dropout2(y))

    def whole(self, block: Any, x: Tensor, mask: Any, stock: dict[str, Any] | None = None, **side: Any) -> Tensor:
        """Runs the stock layer if there is no mask or only the user's own; else both halves."""
        kind = getattr(block.__dict__.get(SITE), "original", None) or type(block)
        if mask is None or (stock is not None and isinstance(mask, Tensor)):
            return self.stock(kind, block, x, **(stock or {}))
        return super().whole(block, x, mask, **side)

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Empty: both masks arrive joined as the attention mask, which ``attach`` coarsens."""
        return {}

    def embedding(self, model: Any) -> nn.Module:
        """The module at the given path; without a path the model itself."""
        return model if self.path is None else model.get_submodule(self.path)

    def image_grid(self, embedding: Any, images: Tensor) -> tuple[int, ...]:
        """The grid that the convolution makes; without one the given grid."""
        if not isinstance(embedding, nn.Conv2d) or images.dim() != 4:
            return self.patches
        return strided_grid(embedding, images)


def _part(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _joined(mask: Tensor | None, padding: Tensor | None, x: Tensor, heads: int) -> Tensor | None:
    """Joins both masks into one additive mask ``[1 or B, 1 or H, 1 or N, N]``."""
    if mask is not None:
        mask = _additive(mask, x)
        mask = mask[None, None] if mask.dim() == 2 else mask.unflatten(0, (-1, heads))
    if padding is not None:
        padding = _additive(padding, x)[:, None, None]
        return padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=x.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def _lifted(site: CoarseSite, x: Tensor) -> Tensor:
    """``x`` at full resolution, by the lineage that its own run left: checkpoints may compute it again later."""
    lineage, prefix = site.trace.run.lineage_at(site.index + 1, x), site.trace.num_prefix
    if lineage is None or not lineage.coarse:
        return x
    start = lineage.start
    rows = lineage.lift(x[:, prefix:], replenish=True).view(start.images, start.width, x.size(2))
    return torch.cat([x[:, :prefix], rows], dim=1)
