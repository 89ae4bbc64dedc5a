"""The coarsened block: attend, coarsen, feed, by the block's own submodules and in its own class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.mask import attention_bias
from tokengraph.assignment import Assignment
from tokengraph.prefix import with_prefix
from tokengraph.schedule import Schedule, tokens_per_layer
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.trace import State, Trace, in_backward

SITE = "_tokengraph"  # attribute that an attached module carries
STASH = "_tokengraph_projected"


@dataclass(frozen=True)
class Recipe:
    """What was asked for, the same for every block of a model."""

    adapter: Adapter
    select: Select
    schedule: Schedule
    prop_attn: bool
    lift: bool


@dataclass
class Site:
    """What an attached module knows: what was asked for, the record of the run, and its own place."""

    recipe: Recipe
    trace: Trace
    index: int = -1
    original: type | None = None

    def budget(self, patches: int, finished: int) -> int:
        """Patch tokens to have left once ``finished`` blocks are done, for ``patches`` at the input."""
        plan = self.trace.plan
        if patches != self.trace.patches:
            recipe = self.recipe
            plan = tokens_per_layer(recipe.schedule, self.trace.depth, patches, recipe.select.fewest)
        return plan[finished]


class Coarse:
    """Mixin of every swapped class: what copying, pickling and replicating need."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        original = getattr(self, SITE).original
        return _rebuild, (next(b for b in type(self).__bases__ if issubclass(b, Coarse)), original), self.__dict__

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "Expected an attached model outside nn.DataParallel: its replicas would share one record. "
            "Use DistributedDataParallel."
        )


class CoarseBlock(Coarse):
    """Mixin of a swapped block; a family's own mixin gives ``forward`` the block's signature and calls ``coarse``."""

    def coarse(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Runs the block on ``x [B, P+n, C]`` and returns ``[B, P+n', C]``."""
        site: Site = getattr(self, SITE)
        adapter, trace, select = site.recipe.adapter, site.trace, site.recipe.select
        x, state = self._enter(site, x)
        bias = attention_bias(mask, state, trace.num_prefix, prop_attn=site.recipe.prop_attn, dtype=x.dtype)
        x = adapter.attend(self, x, bias)  # type: ignore[arg-type]
        keep = site.budget(state.patches, site.index + 1)
        if keep >= state.count:
            self.__dict__.pop(STASH, None)
            x = adapter.feed(self, x)  # type: ignore[arg-type]
        elif select.placement == "inside":
            x, state = _coarsen(site, state, x, keep, self, bias)
            x = adapter.feed(self, x)  # type: ignore[arg-type]
        else:  # before the next block is after this one
            x = adapter.feed(self, x)  # type: ignore[arg-type]
            x, state = _coarsen(site, state, x, keep, self, bias)
        trace.leave(site.index, x, state)
        return x

    @staticmethod
    def _enter(site: Site, x: Tensor) -> tuple[Tensor, State]:
        """The tokens as they come to the block, and their state; block 0 may coarsen before itself."""
        trace = site.trace
        state = trace.enter(site.index, x)
        if state is None:
            state = trace.begin(x.size(0), x.size(1) - trace.num_prefix)
            trace.slots[site.index] = state
        trace.remember(site.index, x, state)
        if site.index == 0 and state.source is None:
            x, state = _coarsen(site, state, x, site.budget(state.patches, 0))
            if state.source is not None and not in_backward():
                trace.slots[0] = state
        return x, state


def _coarsen(
    site: Site, state: State, x: Tensor, keep: int, block: Any = None, bias: Tensor | None = None
) -> tuple[Tensor, State]:
    """One coarsening of ``x [B, P+n, C]`` to ``keep`` patch tokens an image, if there are more.

    What the block's projection made is taken here and let go with the choice, so that it does not live on in the MLP.
    """
    projected = None if block is None else block.__dict__.pop(STASH, None)
    if keep >= state.count:
        return x, state
    trace, select = site.trace, site.recipe.select
    prefix = trace.num_prefix
    size = None if state.size is None else state.size.view(state.images, -1)[:, prefix:]
    stats = None
    if block is not None and projected is not None:
        stats = site.recipe.adapter.statistics(block, projected, prefix, bias)
    known = state.grid[0] * state.grid[1] == state.patches
    if state.images == 0:
        none = Assignment.from_dense(x.new_zeros(0, state.count, dtype=torch.long), keep)
        return x[:, : prefix + keep], state.step(none, keep, None)
    tokens = Tokens(
        x[:, prefix:],
        size,
        state.grid if known else None,
        known and state.source is None,
        None,
        site.index,
        prefix,
        stats,
        (lambda: trace.locate(state, x.device)) if known else None,
    )
    assignment = select(tokens, keep)
    whole = with_prefix(assignment, state.images, prefix)
    rows = x.reshape(-1, x.size(2))
    if isinstance(whole, Assignment):
        rows, new_size = whole.reduce(rows, state.size, reduce=select.reduction)
    else:
        rows, new_size = whole.reduce(rows, state.size)
    count = assignment.num_clusters // state.images
    new_state = state.step(assignment, count, new_size if select.merges else None)
    return rows.view(state.images, prefix + count, -1), new_state


def keep_projection(module: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook: leaves the projection's output on its block until the block has read it."""
    block = module.__dict__[SITE][0]
    block.__dict__[STASH] = output


def note_grid(module: nn.Module, args: Any) -> None:
    """Forward pre-hook of the embedding: notes the patch grid of the images that come in."""
    site: Site = module.__dict__[SITE]
    site.trace.grid = site.recipe.adapter.image_grid(module, args[0])


@cache
def coarse_class(mixin: type, original: type) -> type:
    """The class ``mixin`` + ``original``, one for each pair."""
    return type(f"Coarse{original.__name__}", (mixin, original), {"__module__": original.__module__})


def _rebuild(mixin: type, original: type) -> Any:
    cls: Any = coarse_class(mixin, original)
    return cls.__new__(cls)


def check_halves(adapter: Adapter, block: nn.Module) -> None:
    """Raises unless ``feed(attend(x))`` gives, bit for bit, what the block's own ``forward`` gives.

    It turns a change upstream, or a block with parts that the adapter does not know, into an error. The block is not
    changed, nor is the state of any random generator. Costs two runs on ``[1, 8, C]``.
    """
    mine, known = (inspect.signature(c.forward).parameters for c in (type(block), adapter.block_mixin))
    if extra := [name for name in mine if name not in known]:
        raise TypeError(
            f"Expected {type(block).__name__}.forward to take {', '.join(list(known)[1:])} (got {', '.join(extra)} "
            f"too). The adapter '{adapter.family}' would not know what to do with it: nothing changed."
        )
    parameter = next(block.parameters())
    if parameter.is_meta:
        return
    channels = adapter.projection(block).in_features
    devices = [parameter.device] if parameter.is_cuda else []
    generators = [torch.default_generator, *(torch.cuda.default_generators[d.index] for d in devices)]

    def run(function: Callable[[], Tensor]) -> Tensor:  # dropout the same each time; other devices are left alone
        for generator in generators:
            generator.manual_seed(0)
        return function()

    with torch.random.fork_rng(devices=devices), torch.no_grad():
        x = torch.linspace(-2, 2, 8 * int(channels), device=parameter.device).sin().view(1, 8, -1).to(parameter.dtype)  # type: ignore[arg-type]
        wanted = run(lambda: type(block).forward(block, x))
        got = run(lambda: adapter.feed(block, adapter.attend(block, x, None)))
    if not torch.equal(wanted, got):
        worst = (wanted - got).abs().max().item()
        raise ValueError(
            f"Expected {type(block).__name__} to be its two halves, attention and MLP (got outputs that differ by up "
            f"to {worst:.3g}). The block has parts that the adapter '{adapter.family}' does not know: nothing changed."
        )
