"""The planner of models with attention windows."""

from __future__ import annotations

from functools import partial

from torch import nn

from tokengraph.attach.planner import Found, Options, Plan, planner
from tokengraph.select.cubist_merge import CubistMerge
from tokengraph.select.expedite.expedite import Expedite
from tokengraph.windows.coarsening import WindowAttachment, WindowCoarsening
from tokengraph.windows.find import find_windows
from tokengraph.windows.record import WindowRecord


def _find(model: nn.Module, select: WindowCoarsening, options: Options) -> Found:
    core, family = find_windows(model, select.stage)
    clusters = isinstance(select.select, Expedite | CubistMerge)
    by_stage = clusters and hasattr(core, "downsample")  # the forward of a Swin stage makes them
    return Found(core, lambda: family.blocks, family, decides=by_stage)


@planner(WindowCoarsening, _find)
def plan_windows(model: nn.Module, found: Found, select: WindowCoarsening, options: Options) -> Plan:
    """Plans for SAM-style ViTs of timm and transformers, one stage of Swin or SAM 2, or a wrapper around one.

    Raises:
        ValueError: If the model has no such blocks, or its windows have too few tokens.
    """
    plan = select.plan(found.how.window, len(found.blocks))
    found.how.check(plan)
    record = WindowRecord(len(found.blocks), plan.before, plan.until)
    return Plan(found.how.changes(plan, record), record, select, partial(WindowAttachment, plan=plan))
