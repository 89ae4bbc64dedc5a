"""The planner with which :func:`tokengraph.attach` attaches a :class:`~tokengraph.planning.record.Plan`."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.attach.plain import plan_plain
from tokengraph.attach.planner import Found, Options, planner
from tokengraph.attach.planner import Plan as Changes
from tokengraph.attach.resize import resize_changes
from tokengraph.planning.record import Plan
from tokengraph.select.random import Random


def find_target(model: nn.Module, plan: Plan, options: Options) -> Found:
    """Finds the supported ViT inside ``model``, and checks that the plan was made for one like it.

    Raises:
        ValueError: If the model has another number of blocks or patches, or another width.
    """
    core, adapter = find_adapter(model, options.adapter)
    found = Found(core, lambda: adapter.blocks(core), adapter)
    grid, target = adapter.grid(core), plan.target
    theirs = {"blocks": len(found.blocks), "channels": adapter.channels(core), "patches": math.prod(grid)}
    ours = {"blocks": target.depth, "channels": target.channels, "patches": target.patches}
    if theirs != ours:
        told = "; ".join(f"{theirs[k]} {k} for {ours[k]}" for k in ours if ours[k] != theirs[k])
        raise ValueError(
            f"Expected the model that the plan was made for, a {target.name} (got {type(core).__name__} with {told}). "
            "Make a plan for this model with tokengraph.plan."
        )
    return found


@planner(Plan, find_target)
def plan_target(model: nn.Module, found: Found, plan: Plan, options: Options) -> Changes:
    """Plans the strategy as for any other setting, and the scaling of images if the plan has a resolution."""
    setting = plan.setting
    select: Any = setting.select() or Random()  # removes nothing: its plan keeps every token
    own = Options(plan.schedule, setting.prop_attn, setting.size_bias, plan.lift, options.adapter)
    made = plan_plain(model, found, select, own)
    if setting.resolution is None:
        return made
    core, adapter = found.core, found.how
    sites = {id(change.module): change.site for change in reversed(list(made.changes))}
    mark = type(next(iter(sites.values())))(made.record, request=made.changes[0].site.request)  # type: ignore[call-arg,attr-defined]
    resizing = [
        type(c)(c.module, sites.get(id(c.module), mark), hooks=c.hooks, values=c.values)
        for c in resize_changes(core, adapter, setting.resolution, mark)
    ]
    return Changes([*resizing, *made.changes], made.record, made.select, made.handle)
