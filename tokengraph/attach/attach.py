"""attach: a strategy put inside a stock model, and taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter
from tokengraph.attach.block import coarse_class, note_grid, watch
from tokengraph.attach.checks import check_forward, check_halves, check_mask, check_model, check_plan
from tokengraph.attach.handle import Handle
from tokengraph.attach.site import SITE, STASH, Recipe, Site
from tokengraph.attach.step import begins
from tokengraph.attach.trace import Trace
from tokengraph.attention.size_bias import SizeRule
from tokengraph.schedule import Schedule, tokens_per_layer, warn_of_idle
from tokengraph.select.base import Select, resolve
from tokengraph.spatial.dynamic_spatial import DynamicSpatial, SpatialAttachment, detach_spatial
from tokengraph.windows.coarsening import WindowAttachment, WindowCoarsening

HOOK_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclass(eq=False)
class Attachment(Handle):
    """A strategy attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The model that was given, changed in place.
        trace: The record of the model's last run.
        select: The strategy, as it was bound to the model.
    """

    trace: Trace
    select: Select

    def remove(self) -> None:
        """Gives the model back as it was. Calling it again does nothing, whoever has attached something since."""
        _detach(self.model, self.trace)


@overload
def attach(model: nn.Module, select: type[DynamicSpatial] | DynamicSpatial) -> SpatialAttachment: ...
@overload
def attach(model: nn.Module, select: WindowCoarsening) -> WindowAttachment: ...
@overload
def attach(
    model: nn.Module,
    select: str | type[Select] | Select,
    schedule: Schedule | None = None,
    *,
    prop_attn: bool | str | None = None,
    size_bias: str = "auto",
    lift: bool = False,
    adapter: Adapter | None = None,
) -> Attachment: ...
def attach(
    model: nn.Module,
    select: str | type[Select | DynamicSpatial | WindowCoarsening] | Select | DynamicSpatial | WindowCoarsening,
    schedule: Schedule | None = None,
    *,
    prop_attn: bool | str | None = None,
    size_bias: str = "auto",
    lift: bool = False,
    adapter: Adapter | None = None,
) -> Attachment | SpatialAttachment | WindowAttachment:
    """Makes a stock vision transformer coarsen its tokens, in place, with its own weights.

    The classes of blocks and model are swapped for subclasses of themselves; parameters, state_dict keys and the fused
    attention stay. While nothing is removed the output is bit-identical.

    An attention mask of your own goes to the model as always and is carried along to clusters. A mask that bars whole
    patches from every query (padding) is refused in the first block that would merge, mix, store or learn from tokens;
    strategies that only prune take it, and a barred patch then counts in the budget like any other. NaFlex models know
    their padding and serve every strategy. ``torch.jit.trace`` is refused: use ``torch.export``.

    Args:
        model: A supported model, or a wrapper around one.
        select: A strategy by name, class or instance. :class:`~tokengraph.spatial.DynamicSpatial`, which removes no
            token, is for ConvNeXt and Swin, and takes none of the other arguments; nor does
            :class:`~tokengraph.windows.WindowCoarsening`, for SAM-style ViTs and Swin.
        schedule: An int: tokens removed in every block. ``{l: keep}``: once l blocks are finished, ``keep`` tokens are
            left, an int or a float share of the input; ``"cluster"`` for the strategy's own number of clusters,
            ``"reconstruct"`` for every input patch again. An entry that removes nothing warns;
            :func:`tokengraph.schedule.relative` takes shares of the tokens that are there. A list: removed block by
            block. See
            :func:`tokengraph.schedule.tokens_per_layer`. Strategies that know their own (DynamicViT) need none.
        prop_attn: What is added to the logits of keys that stand for s patches: ``"log"`` (True) ``log s``,
            ``"half-log"`` half of it, ``"none"`` (False) nothing, ``"inverse"`` ``-log s``, which makes large clusters
            count less. Default: ``"log"`` where ``select.weighs``, which is where it merges. Strategies without sizes
            (pruning) add nothing.
        size_bias: How: ``"mask"``, an additive mask, or ``"fold"``, two more entries in each head, which leaves
            mask-free kernels usable. ``"auto"``: what was measured to be faster on the device: the
            mask on CPU; the mask on CUDA too as long as nobody has measured there.
        lift: Make ``forward_features`` return every input patch again, ``[B, P+N, C]``; dropped ones as zeros.
            ``forward_intermediates`` lifts its maps in any case.
        adapter: How a model of your own is built, which cannot be found: :class:`tokengraph.adapters.EncoderLayers`.

    Returns:
        An :class:`Attachment`: ``handle.trace`` for counts and lifting, ``handle.remove()``; or use it in a ``with``.

    Raises:
        ValueError: For an unsupported model, one that is attached already, a schedule that does not fit, or a block
            whose two halves do not give its output, or whose ``forward`` is not that of its class (accelerate's
            hooks). The model is then as it was.

    Cost: milliseconds. In a run: the strategy's cost and one reduction in each block that removes tokens.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> model = tiny_vit()
        >>> with attach(model, "tome", 4) as coarse:
        ...     out = model(torch.randn(1, 3, 32, 32))
        >>> coarse.trace.counts
        [16, 12, 8, 4]
    """
    special = select() if isinstance(select, type) and issubclass(select, DynamicSpatial | WindowCoarsening) else select
    if isinstance(special, DynamicSpatial | WindowCoarsening):
        if schedule is not None or prop_attn is not None or size_bias != "auto" or lift or adapter:
            raise ValueError(
                f"Expected {type(special).__name__} alone (got a schedule, prop_attn, size_bias, lift or adapter too). "
                f"{special.HINT}"
            )
        return special.attach_to(model)
    chosen = resolve(special)
    core, adapter = find_adapter(model, adapter)
    if any(SITE in m.__dict__ for m in model.modules()):
        raise ValueError("Expected a model without a strategy (got one that is attached). Call remove() first.")
    if any(type(p).__name__ == "DTensor" for p in core.parameters()):
        raise ValueError("Expected a model that is not sharded yet (got one). Attach first, then fully_shard.")
    if any(type(m).__name__ == "CheckpointWrapper" for m in core.modules()):
        raise ValueError("Expected blocks that are not wrapped yet (got CheckpointWrapper). Attach first, then wrap.")
    adapter.check_around(model, core)
    blocks = adapter.blocks(core)
    if len({id(b) for b in blocks}) < len(blocks):
        raise ValueError("Expected blocks that are all their own (got a block that stands in the model twice).")
    prefix, grid = adapter.num_prefix(core), adapter.grid(core)
    given = schedule
    chosen, schedule = chosen.bind(adapter.channels(core), len(blocks), schedule)
    check_model(chosen, core)
    check_forward(blocks)
    rule = SizeRule.of(chosen.weighs if prop_attn is None else prop_attn, size_bias)
    plan = tokens_per_layer(schedule, len(blocks), grid[0] * grid[1], chosen.fewest, clusters=chosen.own_budget)
    check_plan(chosen, schedule, plan, adapter.has_class_token(core))
    warn_of_idle(given, plan)
    for block in {_build(b): b for b in blocks}.values():
        adapter.watched(block)  # raises now, before any change, where the attention has no projections to watch
        check_halves(adapter, block, adapter.channels(core))
        if rule.power:
            check_mask(adapter, block, adapter.channels(core))
    start = 0 if begins(chosen) else _first_block(schedule)
    trace = Trace(prefix, len(blocks), start, grid[0] * grid[1], plan, grid)
    recipe = Recipe(adapter, chosen, schedule, rule, lift)
    try:
        _swap(model, core, adapter, blocks, recipe, trace)
    except BaseException:
        _detach(model, trace)
        raise
    return Attachment(model, trace, chosen)


def detach(model: nn.Module) -> None:
    """Takes whatever is attached out of a model, also out of a copy or a loaded one. Without any it does nothing.

    Raises:
        RuntimeError: If the classes of its modules were swapped again since (sharding, parametrizations): nothing is
            changed.
    """
    _detach(model)
    detach_spatial(model)


def _detach(model: nn.Module, trace: Trace | None = None) -> None:
    """Takes strategies out; only the one with this record, where one is given."""
    sites = [(m, site) for m in model.modules() if isinstance(site := m.__dict__.get(SITE), Site)]
    sites = [(m, site) for m, site in sites if trace is None or site.trace is trace]
    for module, site in sites:
        kind = type(module)
        if site.original not in (None, kind) and kind is not coarse_class(kind.__bases__[0], site.original):
            raise RuntimeError(
                f"Expected a model whose classes nobody has swapped since attach (got {kind.__name__}, as of "
                "fully_shard or a parametrization). Take that off first, or make the model again."
            )
    ours = {id(module) for module, _ in sites}
    for module in list(model.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [k for k, hook in hooks.items() if _is_ours(hook, module, ours)]:
                del hooks[key]
                for flags in HOOK_FLAGS:
                    getattr(module, flags).pop(key, None)
    for module, site in sites:
        module.__dict__.pop(SITE)
        module.__dict__.pop(STASH, None)
        if site.original is not None:
            module.__class__ = site.original
            if site.index < 0:  # the model itself
                for name in site.recipe.select.modules:
                    module._modules.pop(name, None)


def _is_ours(hook: Any, module: nn.Module, ours: set[int]) -> bool:
    """Whether a hook on ``module`` belongs to one of the modules with these ids."""
    return getattr(hook, "of_tokengraph", False) and id(getattr(hook, "block", module)) in ours


def _build(block: nn.Module) -> tuple[object, ...]:
    """What a block is made of: blocks of one build need but one check."""
    return tuple((type(m), m.__dict__.get("forward")) for m in block.modules())


def _first_block(schedule: Schedule) -> int:
    """Index of the first block that can see or make coarse tokens; those before it are left alone."""
    if not isinstance(schedule, Mapping) or not schedule:
        return 0
    return max(min(schedule) - 1, 0)


def _swap(
    model: nn.Module, core: nn.Module, adapter: Adapter, blocks: list[nn.Module], recipe: Recipe, trace: Trace
) -> None:
    for index in range(trace.start, len(blocks)):
        block = blocks[index]
        block.__dict__[SITE] = Site(recipe, trace, index, type(block))
        block.__class__ = coarse_class(adapter.block_mixin, type(block))
        if recipe.select.reads_attention and not recipe.select.needs_map:
            watch(block, adapter)
    embedding = adapter.embedding(core)
    embedding.__dict__[SITE] = Site(recipe, trace)
    embedding.register_forward_pre_hook(note_grid, with_kwargs=True)
    core.__dict__[SITE] = Site(recipe, trace, original=type(core))
    parameter = next(core.parameters())
    for name, module in recipe.select.modules.items():
        core.add_module(name, module.to(parameter.device, parameter.dtype).train(core.training))
    for module, end, hook in adapter.outlets(model, core):
        module.__dict__.setdefault(SITE, Site(recipe, trace))
        register = module.register_forward_pre_hook if end == "input" else module.register_forward_hook
        register(hook)
    if adapter.model_mixin is not None:
        core.__class__ = coarse_class(adapter.model_mixin, type(core))
