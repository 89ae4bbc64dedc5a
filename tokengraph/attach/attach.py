"""``attach`` puts a strategy into a stock model; ``detach`` takes it out again."""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.changes import undo
from tokengraph.attach.guards import check_untouched
from tokengraph.attach.handle import Handle
from tokengraph.attach.plain import Attachment
from tokengraph.attach.planner import H, Options, Standalone, planner_of
from tokengraph.kinds import explains
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select, resolve


@overload
def attach(model: nn.Module, select: type[Standalone[H]] | Standalone[H]) -> H: ...
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
@explains
def attach(
    model: nn.Module,
    select: str | type[Select | Standalone[Any]] | Select | Standalone[Any],
    schedule: Schedule | None = None,
    *,
    prop_attn: bool | str | None = None,
    size_bias: str = "auto",
    lift: bool = False,
    adapter: Adapter | None = None,
) -> Handle:
    """Makes a stock vision transformer coarsen its tokens, in place, with its own weights.

    Swaps the classes of blocks and model for subclasses of themselves; parameters, state_dict keys and the fused
    attention stay. If the schedule removes no token, the output is bit-identical.

    Pass your own attention mask to the model as before; it is coarsened with the tokens. If a mask hides a patch from
    every query (padding), the first block that would merge, mix, store or learn from tokens raises. Strategies that
    only prune accept such masks, and hidden patches then count in the budget like any other. NaFlex models handle
    their own padding and work with every strategy. ``torch.jit.trace`` raises; use ``torch.export``.

    Args:
        model: A supported model, or a wrapper around one.
        select: A strategy by name, class or instance. :class:`~tokengraph.spatial.DynamicSpatial` (ConvNeXt and Swin;
            removes no token) and :class:`~tokengraph.windows.WindowCoarsening` (SAM-style ViTs and Swin) carry their
            own settings and take no other argument.
        schedule: An int removes that many tokens in every block. A list removes its entries block by block. A dict
            ``{l: keep}`` keeps ``keep`` tokens after l blocks: an int, a float share of the input, ``"cluster"`` for
            the strategy's own number of clusters, or ``"reconstruct"`` to restore every input patch. An entry that
            removes nothing warns. For shares of the current tokens use :func:`tokengraph.schedule.relative`. Details:
            :func:`tokengraph.schedule.tokens_per_layer`. Strategies with their own schedule (DynamicViT) need none.
        prop_attn: Bias on the logits of a key that stands for s patches: ``"log"`` (True) adds ``log s``,
            ``"half-log"`` half of it, ``"none"`` (False) nothing, and ``"inverse"`` adds ``-log s``, which makes large
            clusters count less. Default: ``"log"`` if ``select.weighs``, as merging strategies do. Strategies without
            sizes (pruning) add nothing.
        size_bias: How the bias reaches the attention: ``"mask"`` as an additive mask, ``"fold"`` as two more entries
            in each head, so that kernels without masks stay usable. ``"auto"`` takes the mask: it measured faster on
            CPU, and CUDA has not been measured yet.
        lift: Makes ``forward_features`` (in transformers ``last_hidden_state`` and all ``hidden_states``) return every
            input patch, ``[B, P+N, C]``. Dropped patches are zeros, or the rows that the strategy stored for them.
            ``forward_intermediates`` and heads that need the grid always lift.
        adapter: Describes a model of your own that tokengraph does not recognise:
            :class:`tokengraph.adapters.EncoderLayers`.

    Returns:
        An :class:`Attachment`: ``handle.trace`` for counts and lifting, ``handle.remove()``; or use it in a ``with``.

    Raises:
        ValueError: If the model is unsupported or already attached, the schedule does not fit, a block's attention and
            MLP halves do not reproduce its output, or a block's ``forward`` was replaced (accelerate's hooks). The
            model is then unchanged.

    Cost: milliseconds. In a run: the strategy's cost and one reduction in each block that removes tokens.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> model = tiny_vit()
        >>> with attach(model, "tome", 4) as coarse:
        ...     out = model(torch.randn(1, 3, 32, 32))
        >>> coarse.trace.counts
        [16, 12, 8, 4]
    """
    options = Options(schedule, prop_attn, size_bias, lift, adapter)
    chosen = _made(select, options)
    planner = planner_of(chosen, model)
    found = planner.find(model, chosen, options)
    check_untouched(model, found)
    plan = planner.plan(model, found, chosen, options)
    try:
        for change in plan.changes:
            change.apply()
    except BaseException:
        undo(model, plan.record)
        raise
    return plan.handle(model, plan.record, plan.select)


def _made(select: Any, options: Options) -> Select | Standalone[Any]:
    """Returns the strategy as an instance; raises if a standalone strategy comes with options."""
    if isinstance(select, type) and issubclass(select, Standalone):
        select = select()
    if not isinstance(select, Standalone):
        return resolve(select)
    if options != Options():
        raise ValueError(
            f"Expected {type(select).__name__} alone (got a schedule, prop_attn, size_bias, lift or adapter too). "
            f"{select.HINT}"
        )
    return select


@explains
def detach(model: nn.Module) -> None:
    """Removes every attached strategy from a model, a copy of it, or a loaded one. Does nothing if there is none.

    Raises:
        RuntimeError: If something swapped the classes of its modules again since (sharding, parametrizations). The
            model is then unchanged.
    """
    undo(model)
