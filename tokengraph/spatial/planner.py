"""The planner of DynamicSpatial."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tokengraph.adapters.coarse import coarse_class
from tokengraph.attach.changes import Change
from tokengraph.attach.checks import check_equal
from tokengraph.attach.planner import Found, Options, Plan, planner
from tokengraph.attach.site import Mark
from tokengraph.nn.modes import in_eval, precise, untouched
from tokengraph.nn.predictor import TokenPredictor
from tokengraph.spatial.block import SpatialBlock
from tokengraph.spatial.dynamic_spatial import DynamicSpatial, SpatialAttachment
from tokengraph.spatial.family import Family
from tokengraph.spatial.find import find_family
from tokengraph.spatial.record import SpatialRecord
from tokengraph.spatial.stage import StageSite

PREDICTORS = "score_predictor"  # the published name


def _find(model: nn.Module, select: DynamicSpatial, options: Options) -> Found:
    core, family = find_family(model)
    stage = family.stage(core)
    return Found(stage, lambda: stage.blocks, (core, family), decides=True)  # type: ignore[arg-type,return-value]


@planner(DynamicSpatial, _find)
def plan_spatial(model: nn.Module, found: Found, select: DynamicSpatial, options: Options) -> Plan:
    """Plans for timm's ``ConvNeXt`` or ``SwinTransformer``, or a wrapper around one.

    Raises:
        ValueError: If the model lacks these layers, or already has parts of the same names.
    """
    core, family = found.how
    bound = _bind(select, family, found.blocks)
    assert bound.layers is not None and bound.predictors is not None
    first, host = bound.layers[0], family.host(core)
    changed = found.blocks[first:]
    for block in {type(b): b for b in changed}.values():
        _check_halves(family, block)
    for module, names in [*((block, family.parts) for block in changed), (host, (PREDICTORS,))]:
        if taken := [name for name in names if hasattr(module, name)]:
            raise ValueError(f"Expected a {type(module).__name__} without a part called {taken[0]!r} (got one).")
    trace = SpatialRecord()
    changes = [
        Change(block, Mark(trace, index), family.block_mixin, parts)
        for index, (block, parts) in enumerate(zip(changed, bound.fast, strict=True), first)
    ]
    changes.append(Change(found.core, StageSite(trace, select=bound), family.stage_mixin))
    changes.append(Change(host, Mark(trace), parts={PREDICTORS: bound.predictors}))
    return Plan(changes, trace, bound, SpatialAttachment)


def _bind(select: DynamicSpatial, family: type[Family], blocks: list[nn.Module]) -> DynamicSpatial:
    """Copies the strategy, with predictors and fast paths for a stage of these blocks."""
    bound = copy.copy(select)
    depth, channels = len(blocks), family.channels(blocks[0])
    if bound.layers is None:
        bound.layers = tuple(max(1, depth // 9) * (s + 1) for s in range(len(select.ratios)))
    if bound.layers[-1] >= depth:
        raise ValueError(f"Expected layers below {depth}, the depth of the stage (got {list(bound.layers)}).")
    if select.predictors is None:
        bound.predictors = nn.ModuleList(TokenPredictor(channels, eps=family.eps, pooling="mean") for _ in bound.layers)
        bound.fast = [family.new_parts(channels) for _ in blocks[bound.layers[0] :]]
    elif (
        len(select.fast) != depth - bound.layers[0]
        or tuple(select.fast[0]) != family.parts
        or (select.predictors[0].channels != channels)
    ):
        raise ValueError("Expected the kind of model of the first attach (got another). Make a new DynamicSpatial.")
    return bound


def _check_halves(family: type[Family], block: nn.Module) -> None:
    """Raises if all positions on the slow path differ, in any bit, from the block's own forward."""
    like = next(block.parameters())
    if like.is_meta:
        return
    # A Swin block stores the shift mask of one size, unless it computes masks in each forward.
    height, width = getattr(block, "input_resolution", (8, 8))
    x = torch.linspace(-2, 2, height * width * family.channels(block), device=like.device).sin().to(like.dtype)
    with in_eval(block), untouched(block), precise(like.device), torch.no_grad():
        probe: SpatialBlock = copy.copy(block)  # type: ignore[assignment]
        probe.__class__ = coarse_class(family.block_mixin, type(block))
        x = probe.native(x.view(1, height, width, -1))
        wanted = block(x)
        mixed, base = probe.mix(x)
        got = probe.native(probe.last(x if base is None else base) + probe.slow(probe.last(mixed)))
    check_equal(block, wanted, got, "spatial mixing and an MLP")
