"""``Tokens``, the input of a strategy: a layer's patch tokens with sizes, positions and attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from tokengraph.attention.stats import AttentionStats


@dataclass
class Tokens:
    """The patch tokens of a batch at one place in a model, or of a graph. Prefix tokens are never among them.

    Args:
        x: Features, ``[B, N, C]``.
        size: Input patches each token stands for, ``[B, N]`` float32; ``None`` means one each.
        grid: ``(H, W)`` of the input patches, ``(T, H, W)`` of a video's; ``None`` when unknown.
        full: True if token i still is patch i of the grid, with nothing coarsened so far.
        mask: ``[B, N]`` bool, True where there is a token (ragged batches); ``None`` means everywhere.
        layer: Index of the block, 0-based; -1 outside a model. Schedules and ``trace`` count finished blocks, so their
            layer is ``layer + 1`` after this block.
        num_prefix: Prefix tokens in front of the sequence inside the model.
        attention: Statistics of the block's attention; ``None`` outside a model and before a block.
        locate: Computes ``pos`` on first use.
        patch: Input patch that each token descends from, ``[B, N]`` int64 in ``[0, H*W)``; ``None`` if token i is
            patch i, or if it is unknown.
        memory: The result of the strategy's ``begin`` in this run; ``None`` outside a model.
        normed: What the block's attention projected, ``[B, N, C]``: the output of the norm in front of it; ``None``
            outside a model, or if the strategy does not read ``"norm"``.
        relaxed: Where each token stands in the order of the last relaxed step, ``[B, N]`` int64 token ids, and how many
            in front are still active; ``None`` before one.
        keep: Cumulative keep decisions of a strategy in training, ``[B, N]``; ``None`` if all are kept.
        edges: ``(edge_index, edge_weight)`` of a graph's own edges, ``[2, E]`` ids in ``[0, B*N)`` and ``[E]`` or
            ``None``; ``None`` if there are none, as inside a model.
        seen: What the strategy's ``observe`` made of the blocks before; ``None`` before the first, and outside a model.
        ahead: The prefix tokens, ``[B, P, C]``; ``None`` outside a model.
        spared: True for images that no step has acted on yet, where others of the batch have fewer tokens already;
            ``None``: no such difference.
    """

    x: Tensor
    size: Tensor | None = None
    grid: tuple[int, ...] | None = None
    full: bool = True
    mask: Tensor | None = None
    layer: int = -1
    num_prefix: int = 0
    attention: AttentionStats | None = None
    locate: Callable[[], Tensor] | None = None
    patch: Tensor | None = None
    memory: Any = None
    keep: Tensor | None = None
    edges: tuple[Tensor, Tensor | None] | None = None
    normed: Tensor | None = None
    relaxed: tuple[Tensor, int | list[int]] | None = None
    seen: Any = None
    ahead: Tensor | None = None
    spared: tuple[bool, ...] | None = None

    @property
    def pos(self) -> Tensor:
        """Centroids in patch units, ``[B, N, 2]`` float32 as (y, x); centre of patch (0, 0) is (0.5, 0.5).

        In a video ``[B, N, 3]`` as (t, y, x).
        """
        if self.locate is None:
            raise ValueError(
                "Expected tokens with positions (got tokens without a grid). Set the graph's grid; inside a model, "
                "patch dropout in train mode or shuffling as in ViTMAE removes it."
            )
        return self.locate()

    @property
    def keys(self) -> Tensor:
        """The layer's attention keys, mean over heads, ``[B, N, D]``; outside a model the features themselves."""
        if self.attention is None:
            return self.x
        keys = self.attention.keys()
        if keys.shape[:-1] != self.x.shape[:-1]:
            raise ValueError(
                f"Expected keys [B, N, D] of tokens {list(self.x.shape)} (got {list(keys.shape)}). The adapter's "
                "statistics() must give queries and keys as [B, H, P+N, D]."
            )
        return keys

    def class_attention(self) -> Tensor:
        """The class token's attention to each patch token, mean over heads, ``[B, N]``; raises as :meth:`class_row`."""
        return self.class_row().mean(dim=1)

    def class_row(self) -> Tensor:
        """The class token's attention to each patch token, ``[B, H, N]``.

        Raises:
            ValueError: Outside a model, before a block, or in a model without a class token.
        """
        if self.attention is None or self.num_prefix == 0:
            where = "outside a model's block" if self.attention is None else "in a model without a class token"
            raise ValueError(
                f"Expected tokens with class attention (got tokens {where}). Use a score of the features, such as "
                "TopK(score='norm'); or attach the strategy to a model with a class token."
            )
        return self.attention.class_row()


def valid_counts(tokens: Tensor, mask: Tensor | None) -> list[int]:
    """Counts the tokens of each image of ``[B, N, ...]``; with a mask one host synchronisation."""
    if mask is None:
        return [tokens.size(1)] * tokens.size(0)
    return mask.sum(dim=1).tolist()


def clamp_budget(keep: int | list[int], tokens: Tensor, mask: Tensor | None) -> int | list[int]:
    """Limits the budget to each image's tokens: an int for equal images, a list if a mask makes them differ.

    Raises:
        ValueError: If a budget is below 1, or there is not one for each image.
        TypeError: If it is neither an int nor a list of ints.
    """
    keep = _whole(keep)
    if not isinstance(keep, list) and keep < 1:
        raise ValueError(f"Expected keep >= 1 tokens an image (got keep={keep}).")
    if mask is None and not isinstance(keep, list):
        return min(keep, tokens.size(1))
    counts = valid_counts(tokens, mask)
    wanted = keep if isinstance(keep, list) else [keep] * len(counts)
    if len(wanted) != len(counts):
        raise ValueError(f"Expected one budget an image, B={len(counts)} (got {len(wanted)}).")
    if any(w < 1 for w, n in zip(wanted, counts, strict=True) if n):
        raise ValueError(f"Expected keep >= 1 tokens an image (got keep={keep}).")
    clamped = [min(w, n) for w, n in zip(wanted, counts, strict=True)]
    return clamped[0] if mask is None and len(set(clamped)) == 1 else clamped


def _whole(keep: int | list[int]) -> int | list[int]:
    """Returns the budget as Python ints; a symbolic one stays symbolic."""
    for k in keep if isinstance(keep, list) else [keep]:
        if isinstance(k, bool) or not isinstance(k, int | torch.SymInt | Integral):
            what = "a list of ints" if isinstance(keep, list) else "an int"
            raise TypeError(f"Expected keep as {what} (got {keep!r}). For a share use tg.coarsen or tokens_to_keep.")
    if isinstance(keep, list):
        return [int(k) for k in keep]
    return keep if isinstance(keep, int | torch.SymInt) else int(keep)


def below(rank: Tensor, keep: int | list[int]) -> Tensor:
    """Returns ``rank < keep`` for ranks ``[B, N]``, with one budget for all images or one each."""
    if isinstance(keep, list):
        return rank < torch.tensor(keep, device=rank.device)[:, None]
    return rank < keep
