"""Runs one step of a strategy inside or between blocks: builds its ``Tokens`` and reduces by its map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokengraph.adapters.coarse import KEPT
from tokengraph.attach.held import Held
from tokengraph.attach.mask import bars_patches
from tokengraph.attach.plan import PlanTable
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attention.stats import AttentionStats
from tokengraph.flat.layout import Layout
from tokengraph.flat.looks import under_vmap
from tokengraph.maps.counts import with_counts
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.decided import Moved
from tokengraph.select.one_image import select_alone, tokens_alone
from tokengraph.select.tokens import Tokens


def begins(select: Select) -> bool:
    """True if the strategy overrides ``begin``, which reads a run's input."""
    return type(select).begin is not Select.begin


def begin(site: Site, state: State, x: Tensor) -> Any:
    """Calls the strategy's ``begin`` on a run's input ``x [B, P+N, C]``; returns a list if images go one by one."""
    select, tokens = site.request.select, see(site, state, x, None)
    if not _alone(select, state):
        return select.begin(tokens)
    grids = state.asked.shape.grids
    assert grids is not None
    return [select.begin(image) for image in tokens_alone(tokens, grids, state.lineage.untouched)]


def _alone(select: Select, state: State) -> bool:
    return state.asked.shape.one_grid is None and (select.alone or select.needs_grid)


def map_edit(site: Site, state: State, keep: int | list[int], finished: int) -> Callable[[Tensor], Tensor]:
    """Returns the strategy's edit of an attention map ``[B, H, P+n, P+n]``, without padding, where it acts."""
    edit, prefix = site.request.select.edit_attention, site.trace.run.num_prefix
    spared = spared_images(site, state, keep, finished)
    counts = state.lineage.now.counts
    if (counts is None and spared is None) or not site.request.select.edits_attention:
        return edit

    def each(attention: Tensor) -> Tensor:
        out = attention.clone()
        for b, count in enumerate(state.lineage.now.each):
            if spared is not None and spared[b]:
                continue
            rows = slice(0, prefix + count)
            out[b : b + 1, :, rows, rows] = edit(attention[b : b + 1, :, rows, rows])
        return out

    return each


def spared_images(site: Site, state: State, keep: int | list[int], finished: int) -> tuple[bool, ...] | None:
    """Returns for each image whether a step does not act on it; ``None``: it acts on all.

    Args:
        site: The block's site.
        state: The tokens before the step.
        keep: Patch tokens to keep.
        finished: Number of finished blocks, as for :meth:`tokengraph.Select.acts`.
    """
    now, acts = state.lineage.now, site.request.select.acts
    if now.counts is None and not isinstance(keep, list):
        return None
    spared = tuple(not acts(finished, k, n) for k, n in now.pairs(keep))
    return spared if any(spared) else None


def see(site: Site, state: State, x: Tensor, stats: AttentionStats | None) -> Tokens:
    """Builds the ``Tokens`` of ``x [B, P+n, C]`` that a strategy reads."""
    lineage, asked, prefix = state.lineage, state.asked, site.trace.run.num_prefix
    start, grid = lineage.start, asked.shape.one_grid
    whole = grid is not None and math.prod(grid) == start.width and asked.shape.ordered
    keep = state.decisions[-1] if state.decisions else None
    if keep is None and start.valid is not None and not lineage.coarse:
        keep = start.valid.float()  # padding counts as already removed
    return Tokens(
        x[:, prefix:],
        None if state.size is None else state.size[:, prefix:],
        grid if whole else None,
        whole and not lineage.coarse,
        lineage.now.valid,
        site.index,
        prefix,
        stats,
        (lambda: state.locate(x.device)) if whole or grid is None else None,
        lineage.ancestor,
        asked.memory,
        keep,
        relaxed=state.relaxed,
        seen=state.seen,
        ahead=x[:, :prefix],
        spared=lineage.spared,
    )


def act(
    site: Site,
    state: State,
    x: Tensor,
    keep: int | list[int],
    finished: int,
    mask: Tensor | None = None,
    block: Any = None,
    bias: Any = None,
    side: dict[str, Any] | None = None,
) -> tuple[Tensor, State]:
    """Runs the strategy on ``x [B, P+n, C]``: reduces to ``keep`` patch tokens an image, or adds a keep decision.

    ``finished`` blocks have run; ``mask`` is the user's own, over the uncoarsened sequence.

    Takes the hooks' outputs off the block and frees them with the choice, so that they use no memory in the MLP.
    """
    return take_step(site, state, x, keep, finished, mask, block, bias, side)[:2]


def take_step(
    site: Site,
    state: State,
    x: Tensor,
    keep: int | list[int],
    finished: int,
    mask: Tensor | None,
    block: Any,
    bias: Any,
    side: dict[str, Any] | None,
) -> tuple[Tensor, State, Assignment | SoftAssignment | None]:
    """:func:`act`, with the map over the patch tokens; ``None``: a decision."""
    kept = None if block is None else block.__dict__.pop(KEPT, None)
    select, run, lineage = site.request.select, site.trace.run, state.lineage
    if kept and select.reads == "norm":
        tokens = see(site, state, x, None)
        tokens.normed = site.request.adapter.for_norm(block, kept["norm"])[:, run.num_prefix :]
    else:
        tokens = see(site, state, x, _statistics(site, block, kept, bias, side or {}, lineage.now))
    relaxed = select.relax(tokens, keep)
    if relaxed is not None:
        rows = torch.cat([x[:, : run.num_prefix], relaxed.x], dim=1)
        ones = relaxed.size.new_ones(x.size(0), run.num_prefix)
        size = torch.cat([ones, relaxed.size], dim=1)
        return rows, replace(state, size=size, relaxed=(relaxed.order, relaxed.active)), None
    decision = select.decide(tokens)
    if isinstance(decision, Moved):
        x = torch.cat([x[:, : run.num_prefix], decision.x], dim=1)
        return x, state.decided(decision.mask, run.num_prefix, decision.size), None
    if decision is not None:
        return x, state.decided(decision, run.num_prefix), None
    if lineage.now.images == 0:
        assert isinstance(keep, int)
        none = Assignment.from_dense(x.new_zeros(0, lineage.now.width, dtype=torch.long), keep)
        state = replace(state, lineage=lineage.step(none, Layout(0, keep)), size=None)
        return x[:, : run.num_prefix + keep], state, none
    assignment = choose(site, state, tokens, keep, mask)
    return *_reduced(site, state, x, assignment, spared_images(site, state, keep, finished)), assignment


def choose(
    site: Site, state: State, tokens: Tokens, keep: int | list[int], mask: Tensor | None
) -> Assignment | SoftAssignment:
    """Returns the strategy's map over the patch tokens; raises if it would mix patches that ``mask`` hides."""
    assignment = _choose(site.request.select, state, tokens, keep)
    assignment = with_counts(assignment, state.lineage.now.images, state.lineage.now.valid)
    if mask is not None and state.asked.shape.grids is None:
        _keep_padding_out(site, mask, assignment)
    return assignment


def _choose(select: Select, state: State, tokens: Tokens, keep: int | list[int]) -> Assignment | SoftAssignment:
    """Returns the strategy's map, made for all images at once or one by one."""
    try:
        if _alone(select, state):
            grids = state.asked.shape.grids
            assert grids is not None
            return select_alone(select, tokens, keep, grids, state.lineage.untouched)
        return select(tokens, keep)
    except RuntimeError as error:
        if not under_vmap() or not any(word in str(error) for word in ("vmap", "storage", "Batching rule")):
            raise
        raise ValueError(
            f"Expected a strategy that reads no numbers under torch.func.vmap (got {type(select).__name__}, whose "
            "choice depends on tensor values here, as thresholds and per-image budgets do). Give it a fixed budget, "
            "or call the model on one image after another."
        ) from error


def _keep_padding_out(site: Site, mask: Tensor, assignment: Assignment | SoftAssignment) -> None:
    """Raises if patches that a user's mask hides from every query would be merged with others.

    Cost: one pass over each mask; on CUDA one host synchronisation a run.
    """
    select, run = site.request.select, site.trace.run
    mixes = isinstance(assignment, SoftAssignment) or not assignment.lossy or select.merges
    if not (mixes or select.stores or select.learns):
        return
    message = (
        f"Expected an attn_mask that hides no patch from every query (got one that does, as for padding). "
        f"{type(select).__name__} would mix hidden patches into other tokens. Prune, for example by "
        'TopK(score="class"), or leave the padding out of the batch.'
    )
    if torch.compiler.is_compiling():
        return torch._assert_async(~bars_patches(mask, run.num_prefix), message)
    if run.mask is mask or (run.mask is not None and mask.is_cuda):
        return  # on CUDA one check a run, because each waits for the device
    run.mask = mask
    if bars_patches(mask, run.num_prefix):
        raise ValueError(message)


def _reduced(
    site: Site, state: State, x: Tensor, assignment: Assignment | SoftAssignment, spared: tuple[bool, ...] | None
) -> tuple[Tensor, State]:
    """Reduces ``x [B, P+n, C]`` and its state by one map over the patch tokens, which leaves some images alone."""
    select, num_prefix, before = site.request.select, site.trace.run.num_prefix, state.lineage.now
    made = assignment.centroids if isinstance(assignment, SoftAssignment) and not select.weighs else None
    held, size = Held.of(assignment, before, num_prefix, apart=made is not None), None
    if made is None:
        rows, size = held.down(x, state.size, select.reduction_at(site.index), sized=select.weighs)
    else:
        rows = held.behind(x, made)  # the strategy has already computed them
    residue = None
    if select.holds:
        residue = before.flat((x - held.up(rows))[:, num_prefix:])
    elif select.stores:
        residue = select.residue(before.flat(x[:, num_prefix:]), assignment)
    lineage = state.lineage.step(assignment, held.after, residue, spared)
    return rows, replace(state, lineage=lineage, size=size if select.weighs else None)


def _statistics(
    site: Site, block: Any, kept: dict[str, Tensor] | None, bias: Any, side: dict[str, Any], layout: Layout
) -> AttentionStats | None:
    """Returns statistics of the block's last attention from the outputs that hooks kept; ``None`` without any."""
    if not kept:
        return None
    prefix = site.trace.run.num_prefix
    if set(kept) == {"map"}:
        stats = AttentionStats.from_map(kept["map"], prefix)
    else:
        stats = site.request.adapter.statistics(block, kept, prefix, bias, side)
        stats.attention = kept.get("map")
    return stats if layout.valid is None else stats.without_padding(layout.with_prefix(prefix).valid)


def look(site: Site, state: State, x: Tensor, block: Any, bias: Any, side: dict[str, Any]) -> State:
    """Shows the strategy the tokens ``x [B, P+n, C]`` and the attention of a block that has run; no token leaves."""
    select, kept = site.request.select, block.__dict__.get(KEPT)
    if state.lineage.now.images == 0:
        return state
    stats = _statistics(site, block, kept, bias, side, state.lineage.now)
    return replace(state, seen=select.observe(see(site, state, x, stats)))


def hand_out(site: Site, state: State, x: Tensor, table: PlanTable) -> tuple[Tensor, State]:
    """Puts the strategy's own outputs, one a token of the input, in place of the last block's; not in idle images."""
    rows = site.request.select.outputs(state.seen)
    if rows is None or all(table.idle):
        return x, state
    rows = rows.to(x.dtype)
    if any(table.idle):
        plain = restore(state, site.trace.run.num_prefix, x)[0]
        rows = torch.where(torch.tensor(table.idle, device=x.device)[:, None, None], plain, rows)
    return rows, state.restored()


def restore(state: State, num_prefix: int, x: Tensor) -> tuple[Tensor, State]:
    """Reconstructs a row for every input patch, prefix tokens in front."""
    start = state.lineage.start
    rows = state.lineage.lift(x[:, num_prefix:], replenish=True).view(start.images, start.width, x.size(2))
    return torch.cat([x[:, :num_prefix], rows], dim=1), state.restored()
