"""The coarsened block: attend, coarsen, feed, by the block's own submodules and in its own class."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.parts.tracing import refuse_script, refuse_tracing
from tokengraph.attach.mask import attention_bias, check_shape
from tokengraph.attach.plan import acts, budget, pairs, plans, restores
from tokengraph.attach.recompute import in_backward
from tokengraph.attach.site import SITE, STASH, Site, ours
from tokengraph.attach.state import State
from tokengraph.attach.step import begin, begins, coarsen, map_edit, restore
from tokengraph.attention.open_map import OpenMap


class Coarse:
    """Mixin of every swapped class: what copying, pickling and replicating need."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        original = getattr(self, SITE).original
        state = {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"}  # as nn.Module itself does
        return _rebuild, (next(b for b in type(self).__bases__ if issubclass(b, Coarse)), original), state

    def __prepare_scriptable__(self) -> Any:
        return refuse_script(self)

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "Expected an attached model outside nn.DataParallel: its replicas would share one record. "
            "Use DistributedDataParallel."
        )


class CoarseBlock(Coarse):
    """Mixin of a swapped block; a family's own mixin gives ``forward`` the block's signature and calls ``coarse``."""

    @property
    def _compiled_call_impl(self) -> Any:
        """What ``compile`` has made of the block, where ``nn.Module`` looks for it; ``None``: it is not compiled.

        Raises:
            RuntimeError: Where a checkpoint runs a block that is compiled by itself.
        """
        compiled = self.__dict__.get("_compiled_call_impl")
        if compiled is not None and in_backward():
            raise RuntimeError(
                "Expected no gradient checkpointing around blocks that are compiled one by one (got both): a compiled "
                "block cannot tell which run it is computed again for. Compile the whole model: torch.compile(model)."
            )
        return compiled

    @_compiled_call_impl.setter
    def _compiled_call_impl(self, compiled: Any) -> None:
        self.__dict__["_compiled_call_impl"] = compiled

    def coarse(self, x: Tensor, mask: Tensor | None = None, **side: Any) -> Tensor:
        """Runs the block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``; ``side``: the block's other inputs."""
        refuse_tracing(x)
        site: Site = getattr(self, SITE)
        adapter, trace, select = site.recipe.adapter, site.trace, site.recipe.select
        x, state = self._enter(site, x, mask)
        bias = attention_bias(mask, state, trace.num_prefix, rule=site.recipe.rule, dtype=x.dtype)
        side = adapter.carry(side, state, self) if state.coarse else side
        keep = budget(site, state, site.index + 1)
        active = acts(site, state, site.index + 1, keep)
        if active:
            x = self._attend(site, x, self._watched_mask(site, state, bias), side)
            x = x if select.placement == "inside" else adapter.feed(self, x)
        else:
            x = adapter.whole(self, x, bias, **side)  # type: ignore[arg-type]
        if restores(site, state, site.index + 1, keep):
            x, state = restore(trace, state, x)
        elif active:
            x, state = coarsen(site, state, x, keep, mask, self, bias, side)
            if select.placement == "inside":  # before the next block is after this one
                x = adapter.feed(self, x)
        trace.leave(site.index, x, state)
        return x

    def _watched_mask(self, site: Site, state: State, bias: Any) -> Any:
        """The mask under which the strategy sees what it reads; only what is left in the stash keeps a map alive."""
        select = site.recipe.select
        if not select.reads_attention:
            return bias
        if not (select.needs_map or torch.compiler.is_compiling()):
            watch(self, site.recipe.adapter)  # type: ignore[arg-type]
        seen = self.__dict__[STASH] = {}  # where hooks and masks leave what they see
        return OpenMap(seen, map_edit(site, state), bias) if select.needs_map else bias

    def _attend(self, site: Site, x: Tensor, mask: Any, side: dict[str, Any]) -> Tensor:
        """The attention half; what it leaves for the strategy goes with it where it fails."""
        try:
            return site.recipe.adapter.attend(self, x, mask, **side)
        except BaseException:
            self.__dict__.pop(STASH, None)
            raise

    @staticmethod
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
        first = budget(site, state, 0) if site.index == 0 and not state.coarse else state.count
        if any(keep < count for keep, count in pairs(state, first)):
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
    site.trace.note(lambda: site.recipe.adapter.note(site.trace, module, args, kwargs))


@cache
def coarse_class(mixin: type, original: type) -> type:
    """The class ``mixin`` + ``original``, one for each pair."""
    return type(f"Coarse{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _rebuild(mixin: type, original: type) -> Any:
    cls: Any = coarse_class(mixin, original)
    return cls.__new__(cls)
