"""Relative position bias between coarse tokens, and how it is added to a block's mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.attention.keep_mask import KeepMask
from tokengraph.flat.segment import TINY, weighted_sum
from tokengraph.maps.hard import Assignment
from tokengraph.maps.lineage import Lineage

# Bytes of one chunk of heads: about the private cache of a CPU core. On a core with 2 MiB, the times for chunks of 1 to
# 12 MiB lay within a quarter of each other; all heads at once took longer.
CACHE = 3 << 20


def coarse_bias(bias: Tensor, lineage: Lineage, num_prefix: int) -> Tensor:
    r"""The bias between the current tokens, out of that between the input patches.

    A token that descends from one patch (pruning, cluster centres) keeps that patch's row and column. A merged key gets
    the log of the mean of :math:`\exp B` over its members, a merged query the mean over its members:

    .. math:: B'_{ab} = \operatorname{mean}_{i \in a} \log \operatorname{mean}_{j \in b} \exp B_{ij}

    Proportional attention adds the log of a key's size; a merged key then gets the weight that its members had
    together. Queries take the plain mean because logits are linear in them. Members of a soft map count by their
    weights. Prefix tokens keep their rows and columns. No paper defines this: on small trained models, the outputs were
    as close to those without merging as with the plain mean on both sides, or closer.

    Args:
        bias: B, one for all images, ``[H, P+N, P+N]`` or ``[1, H, P+N, P+N]``.
        lineage: The current tokens, coarse.
        num_prefix: P.

    Returns:
        ``[B, H, P+n, P+n]`` in the dtype of ``bias``; finite, but meaningless, at padding.

    Raises:
        ValueError: If the bias has another shape.

    Cost: a gather of ``B H (P+n)^2``; for merged tokens a pass over ``B H (P+N)^2`` and some over ``B H (P+n) (P+N)``
    numbers; for weighted maps two dense products of these sizes. The whole bias is read, not copied for each image.
    Entries more than 87 below the largest of their head underflow: they act as 87 below it, or as ``-inf``.
    """
    start, now = lineage.start, lineage.now
    tokens = num_prefix + start.width
    if bias.shape[-2:] != (tokens, tokens) or bias.dim() not in (3, 4) or (bias.dim() == 4 and bias.size(0) != 1):
        raise ValueError(
            f"Expected a relative position bias of shape [H, {tokens}, {tokens}] (got {list(bias.shape)}). "
            "It is made for one image size: give images of that size, or have the model resize its bias first."
        )
    bias = bias.view(-1, tokens, tokens)
    if lineage.ancestor is not None:
        return _picked(bias, lineage.ancestor, num_prefix)
    if len(lineage.maps) == 1 and isinstance(lineage.maps[0], Assignment):
        cluster, count, padded = _members(lineage, num_prefix), num_prefix + now.width, now.valid is not None
        out = bias.new_empty(now.images, bias.size(0), count, count)
        step = _heads_at_once(bias, now.images * count * tokens)
        for i in range(0, bias.size(0), step):
            out[:, i : i + step] = _averaged(bias[i : i + step], cluster, count, padded)
        return out
    with torch.autocast(bias.device.type, enabled=False):
        weight, (linear, top) = _weights(lineage, num_prefix)[:, None], _exp(bias)
        keys = torch.matmul(linear, weight.transpose(2, 3)).clamp_min(TINY).log()
        return (torch.matmul(weight, keys) + top).to(bias.dtype)


def _heads_at_once(bias: Tensor, each: int) -> int:
    """Number of heads, of ``each`` numbers, that fit into a CPU's cache; this halves the time from 384 px on."""
    if bias.device.type != "cpu" or torch.compiler.is_compiling():
        return bias.size(0)
    return max(1, CACHE // (4 * max(each, 1)))


def _exp(bias: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(bias - top)`` in float32, and ``top``, the maximum of each head, ``[H, 1, 1]``."""
    bias = bias.float()
    top = bias.detach().amax(dim=(1, 2), keepdim=True)
    return (bias - top).exp(), top


def _picked(bias: Tensor, ancestor: Tensor, num_prefix: int) -> Tensor:
    """Picks the rows and columns of the patches that tokens descend from."""
    heads, tokens, _ = bias.shape
    ahead = torch.arange(num_prefix, device=ancestor.device).expand(ancestor.size(0), -1)
    own = torch.cat([ahead, ancestor + num_prefix], dim=1)
    pairs = own[:, :, None] * tokens + own[:, None, :]
    return bias.flatten(1).index_select(1, pairs.flatten()).view(heads, *pairs.shape).transpose(0, 1)


def _members(lineage: Lineage, num_prefix: int) -> Tensor:
    """Current token that each token of the input sequence is in, ``[B, P+N]``; ``P+n`` for dropped ones."""
    source, now = lineage.maps[0], lineage.now
    place = torch.arange(num_prefix, num_prefix + now.width + 1, device=source.cluster.device)
    place = torch.cat([now.flat(place[:-1].expand(now.images, -1)), place[-1:]])
    ahead = torch.arange(num_prefix, device=place.device).expand(now.images, -1)
    return torch.cat([ahead, place[source.cluster].view(now.images, -1)], dim=1)


def _averaged(bias: Tensor, cluster: Tensor, count: int, padded: bool) -> Tensor:
    """Averages ``bias [H, T, T]`` over the clusters of each image: ``[B, H, n, n]`` float32."""
    (heads, tokens, _), images = bias.shape, cluster.size(0)
    rows = count + 1  # one more for dropped tokens
    ones = torch.ones_like(cluster, dtype=torch.float32)
    share = ones.new_zeros(images, rows).scatter_add_(1, cluster, ones).clamp_min(1).reciprocal()
    ordered, order = cluster.sort(dim=1, stable=True)  # sums by a sorted index take it as it is
    head = torch.arange(heads, device=bias.device)[:, None]
    image = torch.arange(images, device=bias.device)[:, None, None]
    index = ((image * heads + head) * rows + ordered[:, None]).flatten()
    weight = share.gather(1, ordered)[:, None].expand(-1, heads, -1).flatten()

    def mean(x: Tensor, source: Tensor) -> Tensor:  # of rows, over the members of each cluster
        return weighted_sum(x, weight, index, images * heads * rows, source=source.flatten())

    linear, top = _exp(bias)
    member = head * tokens + order[:, None]
    keys = mean(linear.transpose(1, 2).flatten(0, 1), member)
    keys = keys.view(images, heads, rows, tokens)[:, :, :count].transpose(2, 3)
    if padded or torch.is_grad_enabled():
        keys = keys.clamp_min(TINY)
    out = mean(keys.log().reshape(-1, count), member + image * heads * tokens)
    return out.view(images, heads, rows, count)[:, :, :count] + top


def _weights(lineage: Lineage, num_prefix: int) -> Tensor:
    """How much of each input token is in each current token, ``[B, P+n, P+N]``; rows sum to one."""
    start, now, device = lineage.start, lineage.now, lineage.maps[0].cluster.device
    rows = torch.eye(start.width, dtype=torch.float32, device=device).repeat(start.images, 1)
    weight = F.pad(lineage.averaged(rows), (num_prefix, 0, num_prefix, 0))
    ahead = F.pad(torch.eye(num_prefix, dtype=weight.dtype, device=weight.device), (0, start.width, 0, now.width))
    return weight + ahead


def with_bias(mask: Any, bias: Tensor | None) -> Any:
    """Adds a relative position bias ``[B or 1, H, N, N]`` to a block's mask, a tensor or a mask object."""
    if bias is None or mask is None:
        return bias if mask is None else mask
    return BiasedKeepMask(mask, bias) if isinstance(mask, KeepMask) else bias + mask


class BiasedKeepMask(KeepMask):
    """A :class:`~tokengraph.nn.KeepMask` that first adds a bias to the scores. Attention then computes its map.

    Args:
        mask: The keep decision, with its bias by key if it has one.
        bias: Of each pair of tokens, ``[B or 1, H, N, N]``; gradients reach it.
    """

    def __init__(self, mask: KeepMask, bias: Tensor) -> None:
        super().__init__(mask.keep, official=mask.official, cap=mask.cap, bias=mask.bias)
        self.pairs = bias + mask.pairs if isinstance(mask, BiasedKeepMask) else bias

    def plus(self, scores: Tensor) -> Any:
        """Adds both biases to the scores, before the softmax over kept edges."""
        return super().plus(scores + self.pairs)

    def rows(self, scores: Tensor, start: int) -> Tensor:
        """Returns rows of the softmax; see :meth:`tokengraph.nn.KeepMask.rows`."""
        return super().rows(scores + self.pairs[:, :, start : start + scores.size(2)], start)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float, enable_gqa: bool
    ) -> Tensor:
        """Computes scores, softmax and output one after another, without a fused kernel."""
        self.check(q, k, v, enable_gqa)
        scores = torch.matmul(q * (q.size(-1) ** -0.5 if scale is None else scale), k.transpose(-2, -1))
        weight = self.plus(scores).softmax(dim=-1)
        return torch.matmul(F.dropout(weight, dropout_p).to(v.dtype), v)
