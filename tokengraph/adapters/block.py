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
from tokengraph.select.attention import AttentionStats
from tokengraph.select.base import Select
from tokengraph.select.tokens import Tokens
from tokengraph.soft import SoftAssignment
from tokengraph.trace import State, Trace, in_backward

SITE = "_tokengraph"  # attribute that an attached module carries
STASH = "_tokengraph_seen"  # what hooks leave on a block that is going to read it


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
            select = recipe.select
            plan = tokens_per_layer(
                recipe.schedule, self.trace.depth, patches, select.fewest, clusters=select.own_budget
            )
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
        trace, select = site.trace, site.recipe.select
        x, state = self._enter(site, x)
        bias = attention_bias(mask, state, trace.num_prefix, prop_attn=site.recipe.prop_attn, dtype=x.dtype)
        keep = site.budget(state.patches, site.index + 1)
        reads = keep < state.count and select.reads_attention
        x = self._attend(site, x, bias, reads, reads and select.needs_map)
        if keep == state.count or select.placement != "inside":
            x = site.recipe.adapter.feed(self, x)  # type: ignore[arg-type]
        if keep > state.count:
            x, state = _restore(trace, state, x)
        elif keep < state.count:
            x, state = _coarsen(site, state, x, keep, self, bias)
            if select.placement == "inside":  # before the next block is after this one
                x = site.recipe.adapter.feed(self, x)  # type: ignore[arg-type]
        trace.leave(site.index, x, state)
        return x

    def _attend(self, site: Site, x: Tensor, bias: Tensor | None, reads: bool, opens: bool) -> Tensor:
        """The attention half; where the strategy reads it, the hooks leave what they see in the stash."""
        adapter = site.recipe.adapter
        if not reads:
            return adapter.attend(self, x, bias)  # type: ignore[arg-type]
        self.__dict__[STASH] = {}
        if not opens:
            return adapter.attend(self, x, bias)  # type: ignore[arg-type]
        with adapter.open_map(self):  # type: ignore[arg-type]
            return adapter.attend(self, x, bias)  # type: ignore[arg-type]

    @staticmethod
    def _enter(site: Site, x: Tensor) -> tuple[Tensor, State]:
        """The tokens as they come to the block, and their state; block 0 may coarsen before itself."""
        trace, select = site.trace, site.recipe.select
        state = trace.enter(site.index, x)
        if state is None:
            state = trace.begin(x.size(0), x.size(1) - trace.num_prefix)
            if begins(select):
                with torch.no_grad():
                    state.memory = select.begin(_tokens(site, state, x.detach(), None))
            trace.slots[site.index] = state
        trace.remember(site.index, x, state)
        if site.index == 0 and not state.coarse:
            x, state = _coarsen(site, state, x, site.budget(state.patches, 0))
            if state.coarse and not in_backward():
                trace.slots[0] = state
        return x, state


def begins(select: Select) -> bool:
    """Whether the strategy wants to see a run's input."""
    return type(select).begin is not Select.begin


def _tokens(site: Site, state: State, x: Tensor, stats: AttentionStats | None) -> Tokens:
    """What a strategy sees of ``x [B, P+n, C]``."""
    trace = site.trace
    prefix = trace.num_prefix
    known = state.grid[0] * state.grid[1] == state.patches
    return Tokens(
        x[:, prefix:],
        None if state.size is None else state.size.view(state.images, -1)[:, prefix:],
        state.grid if known else None,
        known and not state.coarse,
        None,
        site.index,
        prefix,
        stats,
        (lambda: trace.locate(state, x.device)) if known else None,
        state.patch,
        state.memory,
    )


def _coarsen(
    site: Site, state: State, x: Tensor, keep: int, block: Any = None, bias: Tensor | None = None
) -> tuple[Tensor, State]:
    """One coarsening of ``x [B, P+n, C]`` to ``keep`` patch tokens an image, if there are more.

    What the hooks left is taken here and let go with the choice, so that it does not live on in the MLP.
    """
    seen = None if block is None else block.__dict__.pop(STASH, None)
    if keep >= state.count:
        return x, state
    select, prefix = site.recipe.select, site.trace.num_prefix
    if state.images == 0:
        none = Assignment.from_dense(x.new_zeros(0, state.count, dtype=torch.long), keep)
        return x[:, : prefix + keep], state.step(none, keep, None)
    tokens = _tokens(site, state, x, _statistics(site, block, seen, bias))
    assignment = select(tokens, keep)
    count = assignment.num_clusters // state.images
    if isinstance(assignment, SoftAssignment) and assignment.centroids is not None and not select.weighs:
        rows = assignment.centroids.view(state.images, count, -1)  # choosing has made them
        return torch.cat([x[:, :prefix], rows], dim=1), state.step(assignment, count, None)
    whole = with_prefix(assignment, state.images, prefix)
    flat = x.reshape(-1, x.size(2))
    if isinstance(whole, Assignment):
        rows, size = whole.reduce(flat, state.size, reduce=select.reduction)
    else:
        rows, size = whole.reduce(flat, state.size)
    return rows.view(state.images, prefix + count, -1), state.step(assignment, count, size if select.weighs else None)


def _statistics(site: Site, block: Any, seen: dict[str, Tensor] | None, bias: Tensor | None) -> AttentionStats | None:
    """Statistics of the attention that the block has just computed, as far as hooks saw it."""
    if not seen:
        return None
    if "map" in seen:
        return AttentionStats.from_map(seen["map"], site.trace.num_prefix)
    return site.recipe.adapter.statistics(block, seen["projected"], site.trace.num_prefix, bias)


def _restore(trace: Trace, state: State, x: Tensor) -> tuple[Tensor, State]:
    """Reconstruction: a row for every input patch again, prefix tokens in front."""
    rows = state.lift(x[:, trace.num_prefix :].flatten(0, 1)).view(state.images, state.patches, -1)
    return torch.cat([x[:, : trace.num_prefix], rows], dim=1), state.restored()


def keep_projection(module: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook: leaves the projection's output with its block, where the block is going to read it."""
    seen = module.__dict__[SITE][0].__dict__.get(STASH)
    if seen is not None:
        seen["projected"] = output


def keep_map(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Forward hook: leaves the attention map with its block, as the strategy edits it."""
    block = module.__dict__[SITE][0]
    seen = block.__dict__.get(STASH)
    if seen is None:
        return output
    seen["map"] = getattr(block, SITE).recipe.select.edit_attention(output)
    return seen["map"]


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
