"""How a coarsened block runs: attend, coarsen, feed, by the block's own submodules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import SITE, STASH, ours
from tokengraph.adapters.parts.tracing import refuse_tracing
from tokengraph.attach.mask import attention_bias, check_shape
from tokengraph.attach.plan import acts, budget, comes_again, plans, restores
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import begin, begins, coarsen, map_edit, restore
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
    adapter, trace, select = site.recipe.adapter, site.trace, site.recipe.select
    x, state = _enter(site, x, mask)
    bias = attention_bias(mask, state, trace.num_prefix, rule=site.recipe.rule, dtype=x.dtype)
    side = adapter.carry(side, state, block) if state.coarse else side
    keep = budget(site, state, site.index + 1)
    again = comes_again(site, state, site.index + 1)
    active = acts(site, state.restored() if again else state, site.index + 1, keep)
    if active:
        x = _attend(site, block, x, _watched_mask(site, block, state, bias), side)
        x = x if select.placement == "inside" else adapter.feed(block, x)
    else:
        x = adapter.whole(block, x, bias, **side)  # type: ignore[arg-type]
    if again or restores(site, state, site.index + 1, keep):
        x, state = restore(trace, state, x)
    if active:
        x, state = coarsen(site, state, x, keep, mask, block, bias, side)
        if select.placement == "inside":  # before the next block is after this one
            x = adapter.feed(block, x)
    trace.leave(site.index, x, state)
    return x


def _watched_mask(site: Site, block: Any, state: State, bias: Any) -> Any:
    """The mask under which the strategy sees what it reads; only what is left in the stash keeps a map alive."""
    select = site.recipe.select
    if select.reads == "nothing":
        return bias
    if not (select.reads == "map" or torch.compiler.is_compiling()):
        watch(block, site.recipe.adapter)
    seen = block.__dict__[STASH] = {}  # where hooks and masks leave what they see
    return OpenMap(seen, map_edit(site, state), bias) if select.reads == "map" else bias


def _attend(site: Site, block: Any, x: Tensor, mask: Any, side: dict[str, Any]) -> Tensor:
    """The attention half; what it leaves for the strategy goes with it where it fails."""
    try:
        return site.recipe.adapter.attend(block, x, mask, **side)
    except BaseException:
        block.__dict__.pop(STASH, None)
        raise


def _enter(site: Site, x: Tensor, mask: Tensor | None) -> tuple[Tensor, State]:
    """The tokens as they come to the block, and their state; block 0 may coarsen before itself."""
    trace, select = site.trace, site.recipe.select
    state = trace.enter(site.index, x)
    if state is None:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "Expected torch.export or torch.compile (got torch.jit.trace, which would write the choices for "
                "this image into the program)."
            )
        state = trace.begin(x)
        check_shape(mask, state, trace.num_prefix)
        state.plans = plans(site, state)
        if begins(select):
            with torch.no_grad():
                state.memory = begin(site, state, x.detach())
        trace.write(site.index, state)
    trace.remember(site.index, x, state)
    if site.index or state.coarse:
        return x, state
    first = budget(site, state, 0)
    if acts(site, state, 0, first):
        x, state = coarsen(site, state, x, first, mask)
        if state.coarse:
            trace.write(0, state)
    return x, state


class KeepOutput:
    """Forward hook: leaves a watched module's output with its block, where the block is going to read it.

    It knows the block by itself, as quantization swaps modules and takes nothing but hooks along.
    """

    of_tokengraph = True

    def __init__(self, block: nn.Module, name: str) -> None:
        self.block, self.name = block, name

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Called by the watched module."""
        seen = self.block.__dict__.get(STASH)
        if seen is not None:
            seen[self.name] = output


def watch(block: nn.Module, adapter: Adapter) -> None:
    """Hooks on the parts of a block that the strategy reads, where they have none: parts may be swapped at any time."""
    for name, module in adapter.watched(block).items():
        hooks = module._forward_hooks.values()
        if not any(isinstance(hook, KeepOutput) and hook.block is block for hook in hooks):
            module.register_forward_hook(KeepOutput(block, name))


@ours
def note_grid(module: nn.Module, args: Any, kwargs: Any) -> None:
    """Forward pre-hook of the embedding: notes the shape of the images that come in."""
    refuse_tracing(*args)
    site: Site = module.__dict__[SITE]
    site.trace.note(lambda: site.recipe.adapter.input_shape(module, args, kwargs))
