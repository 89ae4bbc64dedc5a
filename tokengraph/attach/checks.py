"""The checks before ``attach`` changes a model: of each block's two halves, the strategy and the plan."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.nn.modes import in_eval, precise, untouched
from tokengraph.schedule import Schedule
from tokengraph.select.base import Select

COPIES = 16  # copies of a token in the mask check: enough to stand out from rounding, TF32 included


def check_halves(adapter: Adapter, block: nn.Module, channels: int) -> None:
    """Raises unless ``feed(attend(x))`` equals the block's own ``forward`` bit for bit.

    This catches changes in the model's library and blocks with parts that the adapter does not know. The block and all
    random generators stay as they are, and no hook on the block's parts runs.

    Raises:
        TypeError: If ``forward`` takes arguments that the adapter does not know.
        ValueError: If the block does not run on tokens alone, or outputs differ; the message says by how much.

    Cost: two runs of the block on ``[1, 8, C]``, or on the number of tokens that the adapter asks for.
    """
    mine, known = (inspect.signature(c.forward).parameters for c in (type(block), adapter.block_mixin))
    if extra := [name for name in mine if name not in known and name not in adapter.side_inputs]:
        raise TypeError(
            f"Expected {type(block).__name__}.forward to take {', '.join(list(known)[1:])} (got {', '.join(extra)} "
            f"too). The adapter '{adapter.family}' does not know that argument. Nothing changed."
        )
    parameter = next(block.parameters())
    if parameter.is_meta:
        return
    count = adapter.tokens_to_check(block)
    x, side = _tokens(parameter, count, channels), adapter.example(block, count)
    mask = {name: None for name in ("attention_mask",) if name in mine}

    def halves() -> Tensor:
        return adapter.feed(block, adapter.attend(block, x, None, **side))

    try:
        wanted = _run(block, lambda: adapter.stock(type(block), block, x, **mask, **side))
    except Exception as error:
        raise ValueError(
            f"Expected {type(block).__name__} to run on tokens alone, as blocks of '{adapter.family}' do "
            f"(got {type(error).__name__}: {error}). Nothing changed."
        ) from error
    if not wanted.isfinite().all():
        if parameter.dtype in (torch.float16, torch.bfloat16):  # the example tokens may overflow in half precision
            return
        raise ValueError(
            f"Expected {type(block).__name__} to give finite tokens (got inf or NaN). Load its weights first."
        )
    got = _run(block, halves)
    check_equal(block, wanted, got, f"its two halves, attention and MLP, as the adapter '{adapter.family}' has them")


def check_around_halves(adapter: Adapter, block: nn.Module, channels: int, span: str) -> None:
    """Raises unless attention and MLP read what their norms give, as strategies around a module need it.

    Raises:
        ValueError: If a norm is not found, or a half does not follow what its norm is made to give.

    Cost: four runs of a half on a few tokens.
    """
    parameter = next(block.parameters())
    if span == "block" or parameter.is_meta:
        return
    count = adapter.tokens_to_check(block)
    x, side = _tokens(parameter, count, channels), adapter.example(block, count)
    halves: list[Callable[[Tensor], Tensor]] = [
        lambda rows: adapter.attend(block, rows, None, **side),
        lambda rows: adapter.feed(block, rows),
    ]
    for norm, half, name in zip(adapter.norms(block), halves, ("attention", "mlp"), strict=True):
        with in_eval(block):
            wanted = _run(block, lambda half=half: half(x) - x)
            given = adapter.for_norm(block, _run(block, lambda norm=norm: norm(x)))
            got = _run(block, lambda half=half, norm=norm, given=given: _replaced(norm, given, half, x))
        if not torch.allclose(wanted, got, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()) + 1e-6):
            raise ValueError(
                f"Expected the {name} half of {type(block).__name__} to read the output of its norm "
                f"{type(norm).__name__} (got outputs that differ by up to {(wanted - got).abs().max().item():.3g}). "
                "Override norms() in the adapter. Nothing changed."
            )


def _replaced(norm: nn.Module, given: Tensor, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Runs a half on zeros, with ``given`` in place of what its norm makes of them."""
    hook = norm.register_forward_hook(lambda module, args, output: given)
    try:
        return half(torch.zeros_like(x))
    finally:
        hook.remove()


def check_equal(block: nn.Module, wanted: Tensor, got: Tensor, what: str) -> None:
    """Raises ValueError unless ``got``, the output of the block run as ``what``, equals ``wanted`` bit for bit."""
    if not torch.equal(wanted, got):
        raise ValueError(
            f"Expected {type(block).__name__} to be {what} (got outputs that differ by up to "
            f"{(wanted - got).abs().max().item():.3g}). It has unknown parts. Nothing changed."
        )


def check_takes_mask(adapter: Adapter, block: nn.Module, channels: int) -> None:
    """Raises unless a mask of ``log 16`` at a token has the effect of fifteen more copies of that token.

    A block that ignores its mask, or reads it as a bool mask, would weigh merged tokens wrongly without an error. The
    check is skipped in half precision, for a fixed number of tokens, and for blocks with per-token inputs (rotary
    tables).

    Raises:
        ValueError: If outputs differ by more than 0.2 % of the attention's contribution, or the block fails.

    Cost: two runs of the block's attention on a few tokens.
    """
    parameter = next(block.parameters())
    fixed = type(adapter).tokens_to_check is not Adapter.tokens_to_check
    if parameter.is_meta or fixed or adapter.example(block, 8) or parameter.dtype not in (torch.float32, torch.float64):
        return
    x = _tokens(parameter, 8, channels)
    log = x.new_zeros(1, 1, 1, 8)
    log[..., -1] = math.log(COPIES)
    many = torch.cat([x, x[:, -1:].expand(-1, COPIES - 1, -1)], dim=1)
    try:
        with in_eval(block):  # dropout would draw differently for sequences of other lengths
            weighed = _run(block, lambda: adapter.attend(block, x, log))
            repeated = _run(block, lambda: adapter.attend(block, many, None))[:, :8]
        worst = (weighed - repeated).abs().max().item()
        allowed = 2e-3 * (repeated - x).abs().max().item() + 1e-5 * x.abs().max().item()
        complaint = None if worst <= allowed else f"outputs that are off by {worst:.3g}"
    except (RuntimeError, TypeError, IndexError) as error:
        complaint = f"{type(error).__name__}: {error}"
    if complaint is not None:
        raise ValueError(
            f"Expected the attention of {type(block).__name__} to add its mask to the logits (got {complaint}). "
            "Turn its fused attention on, let attend() of an adapter of your own pass the mask on, or attach with "
            'prop_attn="none". Nothing changed.'
        )


def check_modules(select: Select, core: nn.Module) -> None:
    """Raises unless the strategy's own modules can be added to the model."""
    if taken := [name for name in select.modules if name in core._modules]:
        raise ValueError(f"Expected a model without an attribute {taken[0]!r} (got one).")
    if select.modules and isinstance(core, nn.Sequential):  # it would run them as further layers
        raise ValueError(
            f"Expected a model that is no nn.Sequential, to put {', '.join(select.modules)} into it (got one). "
            "Write it as a class with a forward."
        )


def check_plan(
    select: Select, schedule: Schedule, plan: list[int], class_token: bool, again: frozenset[int] = frozenset()
) -> None:
    """Raises ValueError unless the strategy can follow the schedule in this model.

    Args:
        select: The strategy.
        schedule: The schedule, bound to the model.
        plan: Patch tokens after each number of blocks, ``depth + 1`` ints.
        class_token: True if the model has one.
        again: Numbers of blocks after which tokens return before the strategy chooses again.
    """
    changes = [b - a for a, b in zip([plan[0], *plan[:-1]], plan, strict=True)]
    if isinstance(schedule, Mapping) and 0 in schedule and schedule[0] != 1.0:
        changes[0] = -1
    _check_grid(select, plan, changes, again)
    _check_place(select, schedule, plan, changes)
    if select.needs_class_token and not class_token:
        raise ValueError(f"Expected a model with a class token for {select} (got one without). Use another score.")
    if (again or any(change > 0 for change in changes)) and not select.restores:
        raise ValueError(
            f"Expected a strategy that can reconstruct (got {type(select).__name__}, which discards dropped tokens). "
            "Leave 'reconstruct' out of the schedule."
        )
    if again and select.reads != "nothing" and not any(select.observes(layer - 1) for layer in again):
        raise ValueError(
            f"Expected a strategy that does not read attention where tokens return before it chooses again (got "
            f"{type(select).__name__}, which reads {select.reads}). Returning tokens took no part in that attention. "
            "Use one that reads features alone, or let a block run between 'reconstruct' and the next choice."
        )
    own = select.own_budget
    falls = [layer for layer in range(1, len(plan)) if changes[layer] < 0 or layer in again]
    wrong = [plan[layer] for layer in falls if plan[layer] != own]
    if own is not None and wrong:
        raise ValueError(
            f"Expected a schedule that leaves the {own} tokens that {type(select).__name__} is set to make "
            f"(got {wrong[0]}). Write 'cluster' in place of the number."
        )


def _check_grid(select: Select, plan: list[int], changes: list[int], again: frozenset[int]) -> None:
    """Raises if a strategy that needs the full grid would choose among tokens that are coarse already."""
    # A strategy that needs the full grid can reduce once, and once more after every reconstruction.
    steps = []
    for layer, change in enumerate(changes):
        steps += [False, True] if layer in again else [change < 0] if change else []
    if select.needs_grid and any(a and b for a, b in zip(steps[:-1], steps[1:], strict=True)):
        raise ValueError(
            f"Expected {type(select).__name__} to act on the full grid only (got {sum(steps)} layers in turn). "
            "Give one layer, for example schedule={2: 0.25}."
        )
    falls = [layer for layer in range(1, len(plan)) if changes[layer] < 0]
    late = [layer for layer in falls[1:] if select.for_block(layer - 1).needs_grid]
    if late and not select.needs_grid:
        raise ValueError(
            f"Expected {type(select.for_block(late[0] - 1)).__name__} to act on the full grid only (got it at layer "
            f"{late[0]}, after a step at layer {falls[0]}). Let it act first, and only once."
        )


def _check_place(select: Select, schedule: Schedule, plan: list[int], changes: list[int]) -> None:
    """Raises if the schedule does not suit the strategy's place in a block."""
    block = select.around == "block"
    reads = select.reads != "nothing" and not (select.peeks and block)
    if select.placement == "around" and (reads or (select.learns and not block)):
        raise ValueError(
            f"Expected a strategy around a module to read features alone (got {type(select).__name__}, which "
            f"{'learns' if select.learns else 'reads ' + select.reads}): the block has not run yet."
        )
    if select.placement == "ahead" and changes[-1] < 0:
        raise ValueError(
            f"Expected nothing to leave behind the last block for {type(select).__name__}, which acts ahead of blocks "
            f"(got {plan[-2]} tokens, then {plan[-1]}). Use layers up to {len(plan) - 2}."
        )
    if isinstance(schedule, Mapping) and 0 in schedule and select.placement not in ("before", "ahead", "around"):
        raise ValueError(
            f"Expected layers of at least 1 for {type(select).__name__}, which acts {select.placement} a block "
            "(got layer 0)."
        )


def _tokens(parameter: Tensor, count: int, channels: int) -> Tensor:
    x = torch.linspace(-2, 2, count * channels, device=parameter.device).sin()
    return x.view(1, count, -1).to(parameter.dtype)


def _run(block: nn.Module, function: Callable[[], Tensor]) -> Tensor:
    """Runs the function in the weights' own precision, without gradient, with the same random numbers each time."""
    device = next(block.parameters()).device
    devices = [device] if device.type == "cuda" else []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path rounds differently from the layer's two halves
    try:
        with (
            untouched(block),
            torch.random.fork_rng(devices=devices),
            torch.no_grad(),
            precise(device),
        ):
            torch.default_generator.manual_seed(0)  # not torch.manual_seed, which would touch other devices
            for each in devices:
                torch.cuda.default_generators[each.index].manual_seed(0)
            return function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
