"""The law of anatomy: an adapter's numbers are those of the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.testing.model_case import ModelCase


def counts_the_tokens_of_the_model(case: ModelCase) -> None:
    """Prefix tokens, channels, patch grid, embedding and blocks that the adapter names are those of a run of the model.

    A wrong number of prefix tokens would put every patch at another place of the grid, and nothing else would show it.
    """
    model = case.make()
    core, adapter = find_adapter(model, case.adapter)
    embedding, blocks = adapter.embedding(core), list(adapter.blocks(core))
    block, beside = blocks[0], _beside(core, blocks)
    calls: dict[nn.Module, tuple[Any, dict[str, Any]]] = {}

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, (args, kwargs))

    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in {embedding, *blocks, *beside}]
    try:
        with torch.no_grad():
            case.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    assert block in calls, f"blocks() begins with a {type(block).__name__} that the model does not call"
    assert embedding in calls, f"embedding() is a {type(embedding).__name__} that the model does not call"
    rest = adapter.rest(core)
    left_out = [m for m in beside if m in calls and all(m is not behind for behind in rest)]
    assert not left_out, f"blocks() leaves out {len(left_out)} {type(block).__name__} that the model calls beside them"
    ran = [m for m in calls if m in blocks]
    assert ran == blocks, "blocks() is not in the order in which the model calls its blocks"
    x = case.images_first(next(t for t in (*calls[block][0], *calls[block][1].values()) if isinstance(t, Tensor)))
    shape, prefix, channels = adapter.input_shape(embedding, *calls[embedding]), adapter.num_prefix(core), x.size(2)
    assert adapter.channels(core) == channels, f"channels() is {adapter.channels(core)}, tokens have {channels}"
    patches = math.prod(shape.grid or (shape.grids or ((0, 0),))[0]) if shape.present is None else shape.present.size(1)
    assert x.size(1) == prefix + patches, f"num_prefix()={prefix} and {patches} patches are not {x.size(1)} tokens"
    assert prefix or not adapter.has_class_token(core), "has_class_token() is True, but there is no prefix token"


def _beside(core: nn.Module, blocks: list[nn.Module]) -> list[nn.Module]:
    """Modules that are no blocks, and lie in one container with a block of their class."""
    containers = [m for m in core.modules() if any(b is child for b in blocks for child in m.children())]
    kinds = {type(b) for b in blocks}
    return [c for m in containers for c in m.children() if type(c) in kinds and all(c is not b for b in blocks)]
