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
from tokengraph.attach.site import Site
from tokengraph.attach.state import State
from tokengraph.attach.step import choose, see


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
) -> tuple[Tensor, State]:
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
        ``[B, P+n, C]``, and the state of the tokens inside.

    Cost: the strategy's, a reduction and a lift for each module.
    """
    request, prefix = site.request, site.trace.run.num_prefix
    adapter, span = request.adapter, request.select.around
    assignment = choose(site, state, see(site, state, x, None), keep, mask)
    held = Held.of(assignment, state.lineage.now, prefix)
    inner = replace(state, lineage=state.lineage.step(assignment, held.after))

    def down(rows: Tensor) -> Tensor:
        rows, size = held.down(rows, state.size, request.select.reduction_at(site.index))
        inner.size = size if request.select.weighs else None
        return rows

    def inputs(at: State) -> tuple[Any, dict[str, Any]]:
        bias = attention_bias(mask, at, prefix, rule=request.rule, dtype=x.dtype)
        return bias, adapter.carry(side, at.lineage, block) if at.lineage.coarse else side

    if span == "block":
        rows = down(x)
        bias, others = inputs(inner)
        return held.up(adapter.whole(block, rows, bias, **others)) + (x - held.up(rows)), inner
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
        return adapter.feed(block, x), inner
    rows = down(norms[1](x))
    return x + held.up(_alone(adapter, block, rows, lambda zeros: adapter.feed(block, zeros))), inner


def _alone(adapter: Adapter, block: Any, rows: Tensor, half: Callable[[Tensor], Tensor]) -> Tensor:
    """One half of a block without its residual, on ``rows`` in place of what its norm would give.

    The half adds its result to the zeros that it gets, so that no adapter needs another method for this.
    """
    block.__dict__[GIVEN] = adapter.for_norm(block, rows)
    try:
        return half(rows.new_zeros(()).expand(rows.shape))
    finally:
        block.__dict__.pop(GIVEN, None)
