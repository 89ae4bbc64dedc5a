"""The planner for plain ViTs and every strategy that reduces tokens between their blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter, InputShape
from tokengraph.attach.answers import check_answers, check_kept
from tokengraph.attach.around import GivenOutput
from tokengraph.attach.block import note_grid, run_block
from tokengraph.attach.changes import Change, Hook
from tokengraph.attach.checks import check_around_halves, check_halves, check_modules, check_plan, check_takes_mask
from tokengraph.attach.handle import Handle
from tokengraph.attach.kept import KeptOutput, parts_to_read
from tokengraph.attach.plan import Plans
from tokengraph.attach.planner import Found, Options, Plan, planner
from tokengraph.attach.request import Request
from tokengraph.attach.run import Run
from tokengraph.attach.site import Site
from tokengraph.attach.step import begins
from tokengraph.attach.trace import Trace
from tokengraph.attention.size_bias import SizeRule
from tokengraph.schedule import Schedule, returning, tokens_per_layer, warn_of_idle
from tokengraph.select.base import Select


@dataclass(eq=False, repr=False)
class Attachment(Handle):
    """A strategy attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The user's model, changed in place.
        trace: The record of the model's last run.
        select: The strategy, bound to the model.
    """

    trace: Trace
    select: Select


def find_plain(model: nn.Module, select: Select, options: Options) -> Found:
    """Finds the supported ViT inside ``model``."""
    core, adapter = find_adapter(model, options.adapter)
    return Found(core, lambda: adapter.blocks(core), adapter)


@planner(Select, find_plain)
def plan_plain(model: nn.Module, found: Found, select: Select, options: Options) -> Plan:
    """Binds the strategy, resolves the schedule, and checks one block of every kind.

    Raises:
        TypeError: If blocks take arguments that the adapter does not know.
        ValueError: If model, blocks, strategy and schedule do not fit together.
    """
    core, adapter, blocks = found.core, found.how, found.blocks
    check_answers(adapter, core)
    adapter.check_around(model, core)
    prefix, grid, channels = adapter.num_prefix(core), adapter.grid(core), adapter.channels(core)
    chosen, schedule = select.bind(channels, len(blocks), options.schedule)
    check_modules(chosen, core)
    rule = SizeRule.of(chosen.prop_attn if options.prop_attn is None else options.prop_attn, options.size_bias)
    patches, around = math.prod(grid), chosen.placement == "around"
    if around:
        plan, again = [patches] * (len(blocks) + 1), frozenset[int]()
    else:
        plan = tokens_per_layer(schedule, len(blocks), patches, chosen.fewest, clusters=chosen.own_budget)
        again = returning(schedule, len(blocks), patches)
    check_plan(chosen, schedule, plan, adapter.has_class_token(core), again)
    if not around:
        warn_of_idle(options.schedule, plan)
    for block in {_build(b): b for b in blocks}.values():
        check_kept(adapter, block)  # raises now, before any change, if the attention has no projections to read
        check_halves(adapter, block, channels)
        if around:
            check_around_halves(adapter, block, channels, chosen.around)
        if rule.power:
            check_takes_mask(adapter, block, channels)
    watches = any(chosen.observes(index) for index in range(len(blocks)))
    start = 0 if around or begins(chosen) or watches else _first_block(schedule)
    whole = options.lift or adapter.wants_whole(model, core)
    request = Request(adapter, chosen, schedule, rule, whole, run_block, again)
    plans = Plans(request, plan, patches, grid)
    trace = Trace(Run(prefix, len(blocks), start, plans, InputShape(grid)))
    return Plan(_changes(model, found, request, trace), trace, chosen, Attachment)


def _build(block: nn.Module) -> tuple[object, ...]:
    """Returns a key for a block's architecture; blocks with equal keys need one check."""
    return tuple((type(m), m.__dict__.get("forward")) for m in block.modules())


def _first_block(schedule: Schedule) -> int:
    """Returns the index of the first block that can see or make coarse tokens; earlier blocks stay unchanged."""
    if not isinstance(schedule, Mapping) or not schedule:
        return 0
    return max(min(schedule) - 1, 0)


def _changes(model: nn.Module, found: Found, request: Request, trace: Trace) -> list[Change]:
    core, select = found.core, request.select
    adapter: Adapter = request.adapter
    inner = trace.run.plans.inner
    changes = []
    for index, block in list(enumerate(found.blocks))[trace.run.start :]:
        acting = select.for_block(index)
        own = request if acting is select else replace(request, select=acting)
        kept = parts_to_read(block, adapter, acting.reads)
        hooks = [Hook(module, KeptOutput(block, name)) for name, module in kept.items()]
        if inner and inner[index] < trace.patches and select.around != "block":  # hooks may turn a fast path off
            hooks += [Hook(norm, GivenOutput(block)) for norm in adapter.norms(block)]
        changes.append(Change(block, Site(trace, index, request=own), adapter.block_mixin, hooks=hooks))
    embedding = adapter.embedding(core)
    first = Hook(embedding, note_grid, before=True, with_kwargs=True)
    changes.append(Change(embedding, Site(trace, request=request), hooks=[first]))
    changes.append(
        Change(core, Site(trace, original=type(core), request=request), adapter.model_mixin, dict(select.modules))
    )
    for module, mixin in adapter.mixins(core):
        changes.append(Change(module, Site(trace, original=type(module), request=request), mixin))
    for module, end, call in adapter.outputs(model, core):
        hook = Hook(module, call, before=end == "input")
        changes.append(Change(module, Site(trace, request=request), hooks=[hook]))
    return changes
