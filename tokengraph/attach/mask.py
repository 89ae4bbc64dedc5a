"""Builds the additive attention mask for coarse tokens from their sizes and the user's own mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attach.state import State
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.attention.size_bias import SizeBias, SizeRule
from tokengraph.flat.layout import Layout
from tokengraph.flat.segment import as_type, segment_max, segment_sum
from tokengraph.maps.hard import Assignment
from tokengraph.maps.lineage import Lineage

HIDDEN = -1e4  # exp(-1e4) is 0 in every dtype


def attention_bias(
    mask: Tensor | None, state: State, num_prefix: int, *, rule: SizeRule, dtype: torch.dtype
) -> Tensor | KeepMask | SizeBias | None:
    """Returns the bias that a block's attention adds to its logits.

    Args:
        mask: The user's mask over the uncoarsened sequence, ``[..., 1 or P+N, P+N]``, bool (True: attend) or additive.
        state: The block's input tokens.
        num_prefix: P.
        rule: How to weigh keys by size.
        dtype: The features' dtype.

    Returns:
        ``None`` if there is nothing to add; the user's mask unchanged as long as nothing is coarsened; the keep mask
        of a strategy in training; else an additive mask ``[..., 1 or P+n, P+n]`` that hides padding, as a
        :class:`SizeBias` if the rule folds it.

    Raises:
        ValueError: For a mask of another shape, or a mask together with keep decisions or padding.
    """
    lineage, shape = state.lineage, state.asked.shape
    check_shape(mask, lineage, num_prefix)
    valid = lineage.now.valid
    if shape.grids is not None and (lineage.coarse or state.keep_mask is not None or state.relaxed is not None):
        mask = None  # the model's own padding mask, which the state already has
    trains = state.keep_mask is not None or state.relaxed is not None
    if mask is not None and shape.grids is None and (trains or valid is not None):
        what = "the strategy trains" if trains else "images differ in their number of tokens"
        raise ValueError(f"Expected no attn_mask while {what} (got one).")
    if state.keep_mask is not None:
        return state.keep_mask
    if not lineage.coarse and state.relaxed is None:
        return mask
    if mask is not None:
        return coarse_mask(mask, lineage, num_prefix, power=rule.power).to(dtype)
    if not rule.power or state.size is None:
        return None if valid is None else _padding(valid, num_prefix, dtype)
    return _size_bias(state, rule, dtype)


def _size_bias(state: State, rule: SizeRule, dtype: torch.dtype) -> Tensor | SizeBias:
    """Returns the bias by the sizes of ``state``, made once for all blocks that the same tokens pass.

    With gradients, and compiled, each block makes its own, as checkpointing must see the same operations again.
    """
    assert state.size is not None
    shared = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if shared and (rule, dtype) in state.biases:
        return state.biases[rule, dtype]
    log = rule.bias(state.size)[:, None, None]
    bias = SizeBias(log, dtype) if rule.folds(log.device) else as_type(log, dtype)
    if shared:
        state.biases[rule, dtype] = bias
    return bias


def bar(bias: Any, barred: Tensor, x: Tensor, idle: Sequence[bool] = (False,)) -> Any:
    """Hides the prefix tokens as keys that are True in ``barred [B, P]``, but not in ``idle`` images.

    A finite number, so that a row which may read nothing else stays finite: then it reads them after all.
    """
    if all(idle):
        return bias
    if any(idle):
        barred = barred & ~torch.tensor(idle, device=barred.device)[:, None]
    hidden = x.new_zeros(x.shape[:2]).masked_fill_(F.pad(barred, (0, x.size(1) - barred.size(1))), HIDDEN)
    hidden = hidden[:, None, None]
    if isinstance(bias, Tensor) and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=x.dtype).masked_fill(~bias, -torch.inf)
    return hidden if bias is None else bias + hidden


def check_shape(mask: Tensor | None, lineage: Lineage, num_prefix: int) -> None:
    """Raises ValueError unless a user's mask is ``[..., 1 or P+N, P+N]`` for B images."""
    if mask is None:
        return
    length, shape, images = num_prefix + lineage.start.width, list(mask.shape), lineage.start.images
    fits = 2 <= len(shape) <= 4 and shape[-1] == length and shape[-2] in (1, length)
    if not fits or (len(shape) == 4 and shape[0] not in (1, images)):
        raise ValueError(
            f"Expected attn_mask of shape [1 or {images}, 1 or heads, 1 or {length}, {length}] (got {shape}). "
            "One entry a token of each image goes in as mask[:, None, None, :]."
        )


def bars_patches(mask: Tensor, num_prefix: int) -> Tensor:
    """Returns whether a mask hides some patch of some image from every query, as padding masks do: 0-dim bool."""
    patches = mask[..., num_prefix:]
    barred = ~patches if mask.dtype == torch.bool else patches <= -1e4  # exp(-1e4) is 0 in every dtype
    barred = barred if mask.dim() == 4 else barred.flatten(0, -2)[None, None]
    return barred.flatten(1, -2).all(dim=1).any()


def _padding(valid: Tensor, num_prefix: int, dtype: torch.dtype) -> Tensor:
    """``[B, 1, 1, P+n]``: 0 at tokens, ``-inf`` at padding."""
    barred = torch.zeros_like(valid, dtype=dtype).masked_fill(~valid, -torch.inf)
    return torch.cat([barred.new_zeros(valid.size(0), num_prefix), barred], dim=1)[:, None, None, :]


def coarse_mask(mask: Tensor, lineage: Lineage, num_prefix: int, *, power: float) -> Tensor:
    """Coarsens a user's mask to clusters.

    The entry of a key cluster is ``log sum exp(mask)`` over its members. This is exact if all members had the cluster's
    key. For a ``power`` other than 1, the sum becomes the mean over unmasked members times their number to that power.
    A query cluster takes the mean of ``exp(mask)`` over its members. No publication defines this rule; it is our own.

    Args:
        mask: ``[..., 1 or P+N, P+N]``, bool (True: attend) or additive.
        lineage: The maps from input patches to the current tokens.
        num_prefix: P.
        power: Exponent of the size in the attention weights; 1 is proportional attention.

    Returns:
        ``[B, heads or 1, 1 or P+n, P+n]`` float32; ``-inf`` where every member is masked.

    Raises:
        ValueError: If a strategy reduced the tokens by weighted edges.
    """
    source, now = lineage.source, lineage.now
    if not isinstance(source, Assignment):
        raise ValueError(
            "Expected no attn_mask after a reduction by weighted edges, as GTP and Expedite make (got one). A mask "
            "has no entry for mixed tokens. Use a strategy of hard clusters, such as ToMe or TopK."
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    while mask.dim() < 4:
        mask = mask[None]
    mask = mask.float().expand(now.images, -1, -1, -1)
    cluster = _sequence_clusters(source, now, num_prefix)
    count = num_prefix + now.width
    out = _log_sum(mask.movedim(-1, 1), cluster, count).movedim(1, -1)
    if power != 1:
        members = _log_sum(torch.where(mask > -torch.inf, 0.0, -torch.inf).movedim(-1, 1), cluster, count)
        out = torch.where(out > -torch.inf, out - (1 - power) * members.movedim(1, -1), out)
    if out.size(2) > 1:
        rows = _log_sum(out.movedim(2, 1), cluster, count)
        size = _log_sum(
            torch.zeros(*out.shape[:1], out.size(2), dtype=torch.float32, device=out.device), cluster, count
        )
        out = (rows - size.view(*size.shape, *[1] * (rows.dim() - 2))).movedim(1, 2)
    return out


def _sequence_clusters(source: Assignment, now: Layout, num_prefix: int) -> Tensor:
    """Returns each input token's cluster within its image, ``[B, P+N]``; ``P+n`` for dropped tokens."""
    local = source.cluster.view(now.images, -1)
    start = torch.arange(now.images, device=local.device)[:, None] * now.width
    local = torch.where(local == source.num_clusters, now.width, local - start) + num_prefix
    ahead = torch.arange(num_prefix, device=local.device).expand(now.images, -1)
    return torch.cat([ahead, local], dim=1)


def _log_sum(x: Tensor, cluster: Tensor, count: int) -> Tensor:
    """``log sum exp`` of ``x [B, P+N, ...]`` over the members of each cluster: ``[B, count, ...]``."""
    images = x.size(0)
    rows = count + 1  # one more for dropped tokens
    index = (cluster + torch.arange(images, device=x.device)[:, None] * rows).flatten()
    flat = x.reshape(-1, *x.shape[2:])
    top = segment_max(flat.clamp_min(torch.finfo(torch.float32).min), index, images * rows)
    total = segment_sum((flat - top.index_select(0, index)).exp(), index, images * rows)
    # The inner where keeps the gradient of a masked-out cluster at 0, not NaN.
    log = torch.where(total > 0, torch.where(total > 0, total, 1.0).log(), -torch.inf)
    return (log + top).view(images, rows, *x.shape[2:])[:, :count]
