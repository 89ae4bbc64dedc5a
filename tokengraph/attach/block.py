"""Runs a coarsened block by its own submodules: attention, coarsening, MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.coarse import KEPT, SITE, ours
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.ahead import act_ahead
from tokengraph.attach.around import run_around
from tokengraph.attach.kept import keep_outputs, parts_to_read
from tokengraph.attach.mask import attention_bias, bar, check_shape
from tokengraph.attach.plan import PlanTable
from tokengraph.attach.ragged import run_ragged
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import act, begin, begins, hand_out, look, map_edit, restore
from tokengraph.attention.open_map import OpenMap


def run_block(site: Site, block: Any, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
    """Runs a block by its own submodules (attention, coarsening, MLP) and returns ``[B, P+n', C]``.

    Args:
        site: The block's site, which ``attach`` put there.
        block: The block.
        x: Its tokens, ``[B, P+n, C]``.
        mask: The user's attention mask over the uncoarsened sequence, or ``None``.
        side: The block's other per-token inputs, over the uncoarsened sequence.
    """
    adapter, run, select = site.request.adapter, site.trace.run, site.request.select
    x, state = _enter(site, x, mask)
    table, finished, given = _table(state), site.index + 1, None
    keep = table.inside(site.index, state.lineage, select.acts) if select.placement == "around" else None
    if keep is not None and state.lineage.now.images:  # an empty batch has nothing to merge
        x, state, inner = run_around(site, block, x, state, mask, side, keep)
        run.leave(site.index, x, state, inner)
        return x
    if select.placement == "ahead" and "act" in table.due(site.index, state.lineage, select.acts):
        x, state, given = act_ahead(site, block, x, state, mask, side, table.keep[site.index])
    bias = attention_bias(mask, state, run.num_prefix, rule=site.request.rule, dtype=x.dtype)
    barred = select.barred(state.seen)
    bias = bias if barred is None else bar(bias, barred, x, table.idle)
    side = adapter.carry(side, state.lineage, block) if state.lineage.coarse else side
    due = table.due(finished, state.lineage, select.acts)
    if select.placement == "ahead":  # the next block is where it acts again
        due = tuple(what for what in due if what == "restore")
    inside = select.placement == "inside"
    now, prefix = state.lineage.now, run.num_prefix
    if given is not None:
        x = adapter.feed(block, adapter.attend(block, x, given, **side))  # type: ignore[arg-type]
    elif select.observes(site.index) or ("act" in due and (inside or select.reads != "nothing")):
        x = _attend(site, block, x, _open_mask(site, block, state, bias, table.keep[finished]), side)
        x = x if inside else adapter.feed(block, x)
        if select.observes(site.index):
            state = look(site, state, x, block, bias, side)
        if "act" not in due:
            block.__dict__.pop(KEPT, None)
            x = adapter.feed(block, x) if inside else x
    else:
        alone = barred is None and (state.size is None or not site.request.rule.power)
        how: Any = {"block": block, "only_padding": alone}
        x = run_ragged(lambda rows, own: adapter.whole(block, rows, own, **side), x, bias, now, prefix, side, **how)
    if "restore" in due:
        x, state = restore(state, prefix, x)
    if "act" in due:
        x, state = act(site, state, x, table.keep[finished], finished, mask, block, bias, side)
        if inside:  # placement "before" the next block acts here, after this block's MLP
            now = state.lineage.now
            x = run_ragged(lambda rows, _: adapter.feed(block, rows), x, None, now, prefix, {}, block=block)
    if finished == run.depth:
        x, state = hand_out(site, state, x, table)
    run.leave(site.index, x, state)
    return x


def _open_mask(site: Site, block: Any, state: State, bias: Any, keep: int | list[int]) -> Any:
    """The mask for a block in which the strategy acts: an ``OpenMap`` if it needs the whole map, else ``bias``.

    Only the dict on the block keeps the map alive.
    """
    select = site.request.select
    if select.reads == "nothing":
        return bias
    if not (select.reads == "map" or torch.compiler.is_compiling()):
        keep_outputs(block, parts_to_read(block, site.request.adapter, select.reads))
    kept = block.__dict__[KEPT] = {}  # hooks and open masks write here
    return OpenMap(kept, map_edit(site, state, keep, site.index + 1), bias) if select.needs_map else bias


def _attend(site: Site, block: Any, x: Tensor, mask: Any, side: dict[str, Any]) -> Tensor:
    """Runs the attention half; if it fails, drops the outputs that its hooks kept for the strategy."""
    try:
        return site.request.adapter.attend(block, x, mask, **side)
    except BaseException:
        block.__dict__.pop(KEPT, None)
        raise


def _table(state: State) -> PlanTable:
    """Returns the run's plan."""
    assert state.asked.table is not None
    return state.asked.table


def _enter(site: Site, x: Tensor, mask: Tensor | None) -> tuple[Tensor, State]:
    """Returns the block's input tokens and their state, coarsened first if the plan says so before block 0."""
    run, select = site.trace.run, site.request.select
    state = run.enter(site.index, x)
    if state is None:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "Expected torch.export or torch.compile (got torch.jit.trace, which would record the choices for "
                "this image as constants)."
            )
        state = run.begin(x)
        check_shape(mask, state.lineage, run.num_prefix)
        if begins(select):
            with torch.no_grad():
                state.asked.memory = begin(site, state, x.detach())
        run.write(site.index, state)
    run.remember(site.index, x, state)
    table = _table(state)
    ahead = select.placement == "ahead"
    if site.index == 0 and not ahead and not state.lineage.coarse and table.due(0, state.lineage, select.acts):
        x, state = act(site, state, x, table.keep[0], 0, mask)
        if state.lineage.coarse:
            run.write(0, state)
    return x, state


@ours
def note_grid(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Forward pre-hook of the embedding that notes the shape of the incoming images."""
    refuse_tracing(*args)
    site: Site = module.__dict__[SITE]
    site.trace.run.note(lambda: site.request.adapter.input_shape(module, args, kwargs))
