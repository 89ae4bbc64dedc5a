"""attach: a strategy put inside a stock model, and taken out again."""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.attach.changes import undo
from tokengraph.attach.guards import check_untouched
from tokengraph.attach.handle import Handle
from tokengraph.attach.plain import Attachment
from tokengraph.attach.planner import H, Options, Standalone, planner_of
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
        lift: Make ``forward_features`` (in transformers ``last_hidden_state`` and all ``hidden_states``) return every
            input patch again, ``[B, P+N, C]``; dropped ones as zeros, or as a strategy stored them, which then brings
            them back after the last block. ``forward_intermediates`` and heads that need the grid lift in any case.
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
    options = Options(schedule, prop_attn, size_bias, lift, adapter)
    chosen = _made(select, options)
    planner = planner_of(chosen)
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
    """The strategy as an instance; one that stands alone is given no options."""
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


def detach(model: nn.Module) -> None:
    """Takes whatever is attached out of a model, also out of a copy or a loaded one. Without any it does nothing.

    Raises:
        RuntimeError: If the classes of its modules were swapped again since (sharding, parametrizations): nothing is
            changed.
    """
    undo(model)
