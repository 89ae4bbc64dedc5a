"""Around a module: tokens are fewer inside attention, MLP or block, and all of them return behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import GIVEN
from tokengraph.attach.held import Held
from tokengraph.attach.mask import attention_bias
from tokengraph.attach.peek import peek
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import choose, see
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.select.tokens import Tokens


class GivenOutput:
    """Forward hook of a norm that gives rows which were prepared for its block in place of the norm's own output."""

    of_tokengraph = True

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Gives the rows, if there are any."""
        return self.block.__dict__.get(GIVEN)


def give_outputs(block: nn.Module, norms: Iterable[nn.Module]) -> None:
    """Adds missing hooks to the norms of a block; parts may be replaced between two runs."""
    for norm in norms:
        hooks = norm._forward_hooks.values()
        if not any(isinstance(hook, GivenOutput) and hook.block is block for hook in hooks):
            norm.register_forward_hook(GivenOutput(block))


def run_around(
    site: Site, block: Any, x: Tensor, state: State, mask: Tensor | None, side: dict[str, Any], keep: int | list[int]
) -> tuple[Tensor, State, State | None]:
    r"""Runs a block whose attention, MLP or both see clusters, while the sequence keeps every token.

    .. math:: x \leftarrow x + \operatorname{lift}(\operatorname{module}(\operatorname{reduce}(\operatorname{norm}(x))))

    Around a whole block the tokens themselves are reduced, and return with what they lacked:
    :math:`x \leftarrow \operatorname{lift}(\operatorname{block}(x')) + x - \operatorname{lift}(x')`. So a token that
    was dropped passes by unchanged, bit for bit, and one that stayed by itself is what the block made of it.

    Args:
        site: The block's site.
        block: The block.
        x: Its tokens, ``[B, P+n, C]``.
        state: Their state.
        mask: The user's attention mask, over the uncoarsened sequence.
        side: The block's other per-token inputs, over the uncoarsened sequence.
        keep: Patch tokens an image inside.

    Returns:
        ``[B, P+n, C]``, their state, and the state of the tokens inside; ``None``: all of them.

    Cost: the strategy's, a reduction and a lift for each module.
    """
    request, prefix = site.request, site.trace.run.num_prefix
    adapter, span = request.adapter, request.select.around
    select = request.select
    tokens = _seen(site, block, x, state, mask, side)
    if select.observes(site.index):
        tokens.seen = select.observe(tokens)
        state = replace(state, seen=tokens.seen)
    decision = select.decide(tokens)
    if decision is not None:
        assert isinstance(decision, KeepMask)
        return *run_gated(site, block, x, state, decision, side), None
    assignment = choose(site, state, tokens, keep, mask)
    held = Held.of(assignment, state.lineage.now, prefix)
    inner = replace(state, lineage=state.lineage.step(assignment, held.after))

    def down(rows: Tensor) -> Tensor:
        rows, size = held.down(rows, state.size, select.reduction_at(site.index), sized=select.weighs)
        inner.size = size if request.select.weighs else None
        return rows

    def inputs(at: State) -> tuple[Any, dict[str, Any]]:
        bias = attention_bias(mask, at, prefix, rule=request.rule, dtype=x.dtype)
        return bias, adapter.carry(side, at.lineage, block) if at.lineage.coarse else side

    if span == "block":
        rows = down(x)
        bias, others = inputs(inner)
        return held.back(adapter.whole(block, rows, bias, **others), x, rows), state, inner
    norms = adapter.norms(block)
    if not torch.compiler.is_compiling():
        give_outputs(block, norms)
    if span == "mlp":
        bias, others = inputs(state)
        x = adapter.attend(block, x, bias, **others)
    else:
        rows = down(norms[0](x))
        bias, others = inputs(inner)
        x = x + held.up(_alone(adapter, block, rows, lambda zeros: adapter.attend(block, zeros, bias, **others)))
    if span == "attention":
        return adapter.feed(block, x), state, inner
    rows = down(norms[1](x))
    return x + held.up(_alone(adapter, block, rows, lambda zeros: adapter.feed(block, zeros))), state, inner


def _seen(site: Site, block: Any, x: Tensor, state: State, mask: Tensor | None, side: dict[str, Any]) -> Tokens:
    """The tokens that a strategy around a block reads, with what the block will make of them if the strategy peeks."""
    select, adapter, prefix = site.request.select, site.request.adapter, site.trace.run.num_prefix
    if not select.peeks:
        return see(site, state, x, None)
    if select.reads != "norm":
        return see(site, state, x, peek(site, block, x, state, mask, side))
    tokens = see(site, state, x, None)
    tokens.normed = adapter.for_norm(block, adapter.norms(block)[0](x))[:, prefix:]
    return tokens


def run_gated(
    site: Site, block: Any, x: Tensor, state: State, decision: KeepMask, side: dict[str, Any]
) -> tuple[Tensor, State]:
    r"""Runs a block on all tokens, in training, of which a decision d keeps some: the others idle.

    .. math:: x \leftarrow d \operatorname{block}(x) + (1 - d) x

    Tokens with d = 0 are no keys for others. The gradient of d is that of the sum; none comes through attention.
    """
    adapter, keep, prefix = site.request.adapter, decision.keep, site.trace.run.num_prefix
    whole = torch.cat([keep.new_ones(keep.size(0), prefix), keep], dim=1)
    bias = KeepMask(whole.detach(), official=decision.official, cap=decision.cap)
    others = adapter.carry(side, state.lineage, block) if state.lineage.coarse else side
    gate = whole[..., None].to(x.dtype)
    x = gate * adapter.whole(block, x, bias, **others) + (1 - gate) * x
    return x, replace(state, decisions=(*state.decisions, keep))


def _alone(adapter: Adapter, block: Any, rows: Tensor, half: Callable[[Tensor], Tensor]) -> Tensor:
    """One half of a block without its residual, on ``rows`` in place of what its norm would give.

    The half adds its result to the zeros that it gets, so that no adapter needs another method for this.
    """
    block.__dict__[GIVEN] = adapter.for_norm(block, rows)
    try:
        return half(rows.new_zeros(()).expand(rows.shape))
    finally:
        block.__dict__.pop(GIVEN, None)
