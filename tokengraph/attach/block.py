"""How a coarsened block runs: attend, coarsen, feed, by the block's own submodules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import KEPT, SITE, ours
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.ahead import act_ahead
from tokengraph.attach.mask import attention_bias, check_shape
from tokengraph.attach.plan import PlanTable
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import act, begin, begins, map_edit, restore
from tokengraph.attention.open_map import OpenMap


def run_block(site: Site, block: Any, x: Tensor, mask: Tensor | None, side: dict[str, Any]) -> Tensor:
    """Runs a block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``: attend, coarsen, feed, by its own submodules.

    Args:
        site: What the block carries.
        block: The block.
        x: Its tokens.
        mask: The user's attention mask over the uncoarsened sequence, or ``None``.
        side: The block's other inputs.
    """
    adapter, run, select = site.request.adapter, site.trace.run, site.request.select
    x, state = _enter(site, x, mask)
    table, finished, given = _table(state), site.index + 1, None
    if select.placement == "ahead" and "act" in table.due(site.index, state.lineage, select.acts):
        x, state, given = act_ahead(site, block, x, state, mask, side, table.keep[site.index])
    bias = attention_bias(mask, state, run.num_prefix, rule=site.request.rule, dtype=x.dtype)
    side = adapter.carry(side, state.lineage, block) if state.lineage.coarse else side
    due = table.due(finished, state.lineage, select.acts)
    if select.placement == "ahead":  # the next block is where it acts again
        due = tuple(what for what in due if what == "restore")
    if given is not None:
        x = adapter.feed(block, adapter.attend(block, x, given, **side))  # type: ignore[arg-type]
    elif "act" in due:
        x = _attend(site, block, x, _open_mask(site, block, state, bias), side)
        x = x if select.placement == "inside" else adapter.feed(block, x)
    else:
        x = adapter.whole(block, x, bias, **side)  # type: ignore[arg-type]
    if "restore" in due:
        x, state = restore(state, run.num_prefix, x)
    if "act" in due:
        x, state = act(site, state, x, table.keep[finished], mask, block, bias, side)
        if select.placement == "inside":  # before the next block is after this one
            x = adapter.feed(block, x)
    run.leave(site.index, x, state)
    return x


def _open_mask(site: Site, block: Any, state: State, bias: Any) -> Any:
    """The mask for a block in which the strategy acts: an ``OpenMap`` if it needs the whole map, else ``bias``.

    Only the dict that is left on the block keeps the map alive.
    """
    select = site.request.select
    if select.reads == "nothing":
        return bias
    if not (select.reads == "map" or torch.compiler.is_compiling()):
        keep_outputs(block, site.request.adapter)
    kept = block.__dict__[KEPT] = {}  # where hooks and masks leave what they see
    return OpenMap(kept, map_edit(site, state), bias) if select.reads == "map" else bias


def _attend(site: Site, block: Any, x: Tensor, mask: Any, side: dict[str, Any]) -> Tensor:
    """The attention half; what it leaves for the strategy goes with it where it fails."""
    try:
        return site.request.adapter.attend(block, x, mask, **side)
    except BaseException:
        block.__dict__.pop(KEPT, None)
        raise


def _table(state: State) -> PlanTable:
    """The run's plan."""
    assert state.asked.table is not None
    return state.asked.table


def _enter(site: Site, x: Tensor, mask: Tensor | None) -> tuple[Tensor, State]:
    """The tokens as they come to the block, and their state; block 0 may coarsen before itself."""
    run, select = site.trace.run, site.request.select
    state = run.enter(site.index, x)
    if state is None:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "Expected torch.export or torch.compile (got torch.jit.trace, which would write the choices for "
                "this image into the program)."
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
        x, state = act(site, state, x, table.keep[0], mask)
        if state.lineage.coarse:
            run.write(0, state)
    return x, state


class KeptOutput:
    """Forward hook: leaves a module's output with its block, where the block is going to read it.

    It knows the block by itself, as quantization swaps modules and takes nothing but hooks along.
    """

    of_tokengraph = True

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block, self.name = block, name

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Called by the module."""
        kept = self.block.__dict__.get(KEPT)
        if kept is not None:
            kept[self.name] = output


def keep_outputs(block: nn.Module, adapter: Adapter) -> None:
    """Hooks on the parts of a block that the strategy reads, where they have none: parts may be swapped at any time."""
    for name, module in adapter.kept(block).items():
        hooks = module._forward_hooks.values()
        if not any(isinstance(hook, KeptOutput) and hook.block is block for hook in hooks):
            module.register_forward_hook(KeptOutput(block, name))


@ours
def note_grid(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Forward pre-hook of the embedding: notes the shape of the images that come in."""
    refuse_tracing(*args)
    site: Site = module.__dict__[SITE]
    site.trace.run.note(lambda: site.request.adapter.input_shape(module, args, kwargs))
