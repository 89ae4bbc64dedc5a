"""Checks what an adapter says about a model, so that a wrong method is named before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import nn

from tokengraph.adapters.base import Adapter


def check_answers(adapter: Adapter, core: nn.Module) -> None:
    """Raises if a method of the adapter returns another kind than ``attach`` reads.

    Args:
        adapter: The adapter.
        core: The model that has the blocks.

    Raises:
        TypeError: If so; the message names the adapter's method.

    Cost: five calls of the adapter.
    """
    _expect(adapter, "num_prefix", "an int, 0 or more", adapter.num_prefix(core), lambda n: _whole(n, 0))
    _expect(adapter, "channels", "an int above 0", adapter.channels(core), lambda n: _whole(n, 1))
    _expect(adapter, "grid", "(H, W), rows and columns of the patches, or (T, H, W)", adapter.grid(core), _pair)
    _expect(adapter, "embedding", "the nn.Module that makes the patches", adapter.embedding(core), _module)
    _expect(adapter, "blocks", "the blocks in a list", adapter.blocks(core), _modules)


def check_kept(adapter: Adapter, block: nn.Module) -> None:
    """Raises unless the adapter's ``kept`` names modules.

    Raises:
        TypeError: If so; the message names the adapter's method.
    """
    what = 'modules by name, such as {"qkv": block.attn.qkv}'
    _expect(adapter, "kept", what, adapter.kept(block), lambda k: isinstance(k, Mapping) and _modules([*k.values()], 0))


def _expect(adapter: Adapter, method: str, what: str, got: Any, fits: Any) -> None:
    if not fits(got):
        seen = repr(got) if not isinstance(got, nn.Module) else type(got).__name__
        raise TypeError(f"Expected {type(adapter).__name__}.{method}() to return {what} (got {seen:.80}).")


def _whole(n: Any, least: int) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= least


def _pair(grid: Any) -> bool:
    return isinstance(grid, Sequence) and len(grid) in (2, 3) and all(_whole(side, 1) for side in grid)


def _module(m: Any) -> bool:
    return isinstance(m, nn.Module)


def _modules(found: Any, least: int = 1) -> bool:
    return (
        isinstance(found, Sequence | nn.ModuleList | nn.Sequential) and len(found) >= least and all(map(_module, found))
    )
