"""One step ahead of a block: by the attention that the block pays to the tokens as they come, before it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.coarse import KEPT
from tokengraph.attach.mask import attention_bias
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import map_edit, take_step
from tokengraph.attention.given_map import GivenMap
from tokengraph.attention.open_map import MapSeen, OnlyMap
from tokengraph.flat.layout import Layout
from tokengraph.flat.segment import segment_sum
from tokengraph.maps.hard import Assignment
from tokengraph.maps.pool import Bins, counted


def act_ahead(
    site: Site,
    block: Any,
    x: Tensor,
    state: State,
    mask: Tensor | None,
    side: dict[str, Any],
    keep: int | list[int],
) -> tuple[Tensor, State, GivenMap | None]:
    """A step of the strategy on the tokens that come to a block, by that block's own map of them.

    Returns:
        The fewer tokens ``[B, P+n', C]``, their state, and the map by which the block is to mix their values; ``None``:
        one that it makes of them itself.

    Cost: queries, keys, values and the map of all tokens, unfused; then the block's attention half on fewer.
    """
    request, prefix = site.request, site.trace.run.num_prefix
    bias: Any = attention_bias(mask, state, prefix, rule=request.rule, dtype=x.dtype)
    first = request.adapter.carry(side, state.lineage, block) if state.lineage.coarse else side
    kept = block.__dict__[KEPT] = {}
    try:
        opened: Any = OnlyMap(kept, map_edit(site, state, keep, site.index), bias)
        request.adapter.attend(block, x, opened, **first)
    except MapSeen:
        pass
    except BaseException:
        block.__dict__.pop(KEPT, None)
        raise
    attention, before = kept["map"], state.lineage.now
    x, state, assignment = take_step(site, state, x, keep, site.index, mask, block, bias, first)
    if not request.select.pools_map or before.images == 0:
        return x, state, None
    assert isinstance(assignment, Assignment)
    return x, state, GivenMap(pooled_map(attention, assignment, before, state.lineage.now, prefix))


def pooled_map(attention: Tensor, assignment: Assignment, before: Layout, after: Layout, num_prefix: int) -> Tensor:
    r"""The map between clusters: what they receive adds up, what they pay is the mean by the assignment's weights.

    .. math:: A'_{pq} = \frac{\sum_{c(i)=p} w_i \sum_{c(j)=q} A_{ij}}{\sum_{c(i)=p} w_i}

    Args:
        attention: ``[B, H, P+n, P+n]``.
        assignment: A hard map over the patch tokens, without tokens that drop.
        before: How these lie.
        after: How the clusters lie.
        num_prefix: P.

    Returns:
        ``[B, H, P+n', P+n']``; rows sum to one, those of padding to zero.

    Cost: ``O(B H (P+n)^2)``; no matrix of the map.
    """
    images, rows = before.images, num_prefix + after.width + 1  # one more row for padding
    weight = torch.ones_like(assignment.cluster, dtype=torch.float32)
    if assignment.weight is not None:
        weight = assignment.weight
    bins = Bins(assignment.cluster, assignment.num_clusters, False)
    weight, total = counted(weight, bins, "auto")
    share = weight / total.index_select(0, assignment.cluster)
    local, share = _sequence(assignment, share, before, after, num_prefix)
    index = (local + torch.arange(images, device=local.device)[:, None] * rows).flatten()
    out = attention.float().movedim(3, 1).flatten(0, 1)  # columns first: [B*S, H, S]
    out = segment_sum(out, index, images * rows).unflatten(0, (images, rows))[:, :-1]
    out = (out.movedim(3, 1) * share[:, :, None, None]).flatten(0, 1)  # then rows: [B*S, n', H]
    out = segment_sum(out, index, images * rows).unflatten(0, (images, rows))[:, :-1]
    return out.movedim(3, 1).to(attention.dtype)


def _sequence(
    assignment: Assignment, share: Tensor, before: Layout, after: Layout, num_prefix: int
) -> tuple[Tensor, Tensor]:
    """Cluster within its image of each token of the sequence, ``[B, P+n]``, and its share there; padding: the last."""
    images, width = before.images, num_prefix + after.width
    if before.valid is None and after.valid is None:
        own = assignment.cluster.view(images, -1) - torch.arange(images, device=share.device)[:, None] * after.width
        own, share = own + num_prefix, share.view(images, -1)
    else:
        assert assignment.ptr is not None and assignment.cluster_ptr is not None
        start = torch.repeat_interleave(
            assignment.cluster_ptr[:-1], assignment.ptr.diff(), output_size=assignment.num_tokens
        )
        own = before.padded(assignment.cluster - start + num_prefix - width) + width  # padding, at 0, becomes the last
        share = before.padded(share)
    ahead = torch.arange(num_prefix, device=own.device).expand(images, -1)
    return torch.cat([ahead, own], dim=1), torch.cat([share.new_ones(images, num_prefix), share], dim=1)
