"""One step of a strategy between the halves of a block: what it sees, and what becomes of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.coarse import STASH
from tokengraph.attach.mask import bars_patches
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.trace import Trace
from tokengraph.attention.stats import AttentionStats
from tokengraph.flat.layout import pad, spread
from tokengraph.flat.looks import under_vmap
from tokengraph.maps.counts import with_counts
from tokengraph.maps.hard import Assignment
from tokengraph.maps.prefix import with_prefix
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.one_image import select_alone, tokens_alone
from tokengraph.select.tokens import Tokens


def begins(select: Select) -> bool:
    """Whether the strategy wants to see a run's input."""
    return type(select).begin is not Select.begin


def begin(site: Site, state: State, x: Tensor) -> Any:
    """What the strategy's ``begin`` makes of a run's input ``x [B, P+N, C]``; a list where images go one by one."""
    select, tokens = site.recipe.select, see(site, state, x, None)
    if not _alone(select, state):
        return select.begin(tokens)
    assert state.grids is not None
    return [select.begin(image) for image in tokens_alone(tokens, state.grids, True)]


def _alone(select: Select, state: State) -> bool:
    return state.one_grid is None and (select.alone or select.needs_grid)


def map_edit(site: Site, state: State) -> Callable[[Tensor], Tensor]:
    """What the strategy makes of an attention map ``[B, H, P+n, P+n]``, without padding where images differ."""
    edit, prefix = site.recipe.select.edit_attention, site.trace.num_prefix
    if state.counts is None or not site.recipe.select.edits_attention:
        return edit

    def each(attention: Tensor) -> Tensor:
        out = attention.clone()
        for b, count in enumerate(state.counts or ()):
            rows = slice(0, prefix + count)
            out[b : b + 1, :, rows, rows] = edit(attention[b : b + 1, :, rows, rows])
        return out

    return each


def see(site: Site, state: State, x: Tensor, stats: AttentionStats | None) -> Tokens:
    """What a strategy sees of ``x [B, P+n, C]``."""
    trace = site.trace
    prefix = trace.num_prefix
    grid = state.one_grid
    whole = grid is not None and grid[0] * grid[1] == state.patches and trace.ordered
    keep = state.decisions[-1] if state.decisions else None
    if keep is None and state.present is not None and not state.coarse:
        keep = state.present.float()  # decisions are about what is there
    return Tokens(
        x[:, prefix:],
        None if state.size is None else state.size.view(state.images, -1)[:, prefix:],
        grid if whole else None,
        whole and not state.coarse,
        state.valid,
        site.index,
        prefix,
        stats,
        (lambda: state.locate(x.device)) if whole or grid is None else None,
        state.patch,
        state.memory,
        keep,
    )


def coarsen(
    site: Site,
    state: State,
    x: Tensor,
    keep: int | list[int],
    mask: Tensor | None = None,
    block: Any = None,
    bias: Any = None,
    side: dict[str, Any] | None = None,
) -> tuple[Tensor, State]:
    """One step of the strategy on ``x [B, P+n, C]``: to ``keep`` patch tokens an image, or one keep decision.

    ``mask`` is the user's own, over the uncoarsened sequence.

    What the hooks left is taken here and let go with the choice, so that it does not live on in the MLP.
    """
    seen = None if block is None else block.__dict__.pop(STASH, None)
    select = site.recipe.select
    tokens = see(site, state, x, _statistics(site, block, seen, bias, side or {}))
    decision = select.decide(tokens)
    if decision is not None:
        return x, state.decided(decision, site.trace.num_prefix)
    if state.images == 0:
        assert isinstance(keep, int)
        none = Assignment.from_dense(x.new_zeros(0, state.count, dtype=torch.long), keep)
        return x[:, : site.trace.num_prefix + keep], state.step(none, keep, None)
    try:
        if _alone(select, state):
            assert state.grids is not None
            assignment = select_alone(select, tokens, keep, state.grids, not state.coarse)
        else:
            assignment = select(tokens, keep)
    except RuntimeError as error:
        if not under_vmap() or not any(word in str(error) for word in ("vmap", "storage")):
            raise
        raise ValueError(
            f"Expected a strategy that reads no numbers under torch.func.vmap (got {type(select).__name__}, whose "
            "choice here depends on them, as thresholds and budgets of single images do). Give it a fixed budget, or "
            "call the model on one image after another."
        ) from error
    assignment = with_counts(assignment, state.images, state.valid)
    if mask is not None and state.grids is None:
        _keep_padding_out(site, mask, assignment)
    if state.valid is not None or assignment.counts is not None:
        return _ragged(site, state, x, assignment)
    return _equal(site, state, x, assignment)


def _keep_padding_out(site: Site, mask: Tensor, assignment: Assignment | SoftAssignment) -> None:
    """Raises where patches that a user's mask bars from every query would go into clusters with others.

    Cost: one pass over each mask; on CUDA one host synchronisation a run.
    """
    select, trace = site.recipe.select, site.trace
    mixes = isinstance(assignment, SoftAssignment) or not assignment.lossy or select.merges
    if not (mixes or select.stores or select.learns):
        return
    message = (
        f"Expected an attn_mask that bars no patch from every query (got one, as for padding). "
        f"{type(select).__name__} would mix what is barred into other tokens. Prune, for example by "
        'TopK(score="class"), or leave the padding out of the batch.'
    )
    if torch.compiler.is_compiling():
        return torch._assert_async(~bars_patches(mask, trace.num_prefix), message)
    if trace.mask is mask or (trace.mask is not None and mask.is_cuda):
        return  # on CUDA one look a run: each waits for the device
    trace.mask = mask
    if bars_patches(mask, trace.num_prefix):
        raise ValueError(message)


def _equal(site: Site, state: State, x: Tensor, assignment: Assignment | SoftAssignment) -> tuple[Tensor, State]:
    """``x`` reduced where all images have as many tokens: whole sequences as they lie in memory."""
    select, prefix = site.recipe.select, site.trace.num_prefix
    count = assignment.num_clusters // state.images
    if isinstance(assignment, SoftAssignment) and assignment.centroids is not None and not select.weighs:
        rows = assignment.centroids.view(state.images, count, -1)  # choosing has made them
        return torch.cat([x[:, :prefix], rows], dim=1), state.step(assignment, count, None)
    whole = with_prefix(assignment, state.images, prefix)
    rows, size = _reduce(site, whole, x.reshape(-1, x.size(2)), state.size)
    residue = select.residue(x[:, prefix:].flatten(0, 1), assignment) if select.stores else None
    new = state.step(assignment, count, size if select.weighs else None, residue=residue)
    return rows.view(state.images, prefix + count, -1), new


def _ragged(site: Site, state: State, x: Tensor, assignment: Assignment | SoftAssignment) -> tuple[Tensor, State]:
    """``x`` reduced where images differ: patch tokens flat, then padded again."""
    select, prefix = site.recipe.select, site.trace.num_prefix
    size = None if state.size is None else state.flat(state.size.view(state.images, -1)[:, prefix:])
    before = state.flat(x[:, prefix:])
    if isinstance(assignment, SoftAssignment) and assignment.centroids is not None and not select.weighs:
        rows = assignment.centroids  # choosing has made them
    else:
        rows, size = _reduce(site, assignment, before, size)
    residue = select.residue(before, assignment) if select.stores else None
    counts = assignment.counts or (assignment.num_clusters // state.images,) * state.images
    padded, valid = pad(rows, list(counts))
    x = torch.cat([x[:, :prefix], padded], dim=1)
    equal = assignment.counts is None
    if select.weighs:  # padding has size 0, so that its logarithm bars it
        assert size is not None
        size = torch.cat([size.new_ones(state.images, prefix), spread(size, valid)], dim=1).flatten()
    size = size if select.weighs else None
    new = state.step(assignment, max(counts), size, None if equal else valid, residue)
    return x, new


def _reduce(
    site: Site, assignment: Assignment | SoftAssignment, rows: Tensor, size: Tensor | None
) -> tuple[Tensor, Tensor]:
    if isinstance(assignment, Assignment):
        return assignment.reduce(rows, size, reduce=site.recipe.select.reduction_at(site.index))
    return assignment.reduce(rows, size)


def _statistics(
    site: Site, block: Any, seen: dict[str, Tensor] | None, bias: Any, side: dict[str, Any]
) -> AttentionStats | None:
    """Statistics of the attention that the block has just computed, as far as hooks saw it."""
    if not seen:
        return None
    if "map" in seen:
        return AttentionStats.from_map(seen["map"], site.trace.num_prefix)
    return site.recipe.adapter.statistics(block, seen, site.trace.num_prefix, bias, side)


def restore(trace: Trace, state: State, x: Tensor) -> tuple[Tensor, State]:
    """Reconstruction: a row for every input patch again, prefix tokens in front."""
    rows = state.lift(x[:, trace.num_prefix :], replenish=True).view(state.images, state.patches, x.size(2))
    return torch.cat([x[:, : trace.num_prefix], rows], dim=1), state.restored()
