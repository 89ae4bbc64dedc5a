"""How alike a model's patch tokens are after each block: where they are alike, merging loses little."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.adapters import find_adapter

IMAGES = 8  # of each batch at most


@torch.no_grad()
def similarities(model: nn.Module, batches: Sequence[Tensor]) -> tuple[float, ...]:
    """Returns after each block the mean cosine of a patch token with the token most similar to it, ``L`` numbers.

    Args:
        model: A supported model, plain and in eval mode.
        batches: Batches of images ``[B, 3, H, W]``; of each the first 8 count.

    Cost: one run of these images, and ``O(N^2 C)`` an image and block.
    """
    core, adapter = find_adapter(model)
    blocks, prefix = adapter.blocks(core), adapter.num_prefix(core)
    found: list[list[Tensor]] = [[] for _ in blocks]

    def note(index: int, module: nn.Module, args: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        if x.dim() == 3 and x.size(1) > prefix + 1:
            found[index].append(nearest(x[:, prefix:]))

    hooks = [block.register_forward_hook(partial(note, i)) for i, block in enumerate(blocks)]
    try:
        for batch in batches:
            model(batch[:IMAGES])
    finally:
        for hook in hooks:
            hook.remove()
    if not all(found):
        return ()
    return tuple(round(float(torch.cat(parts).mean()), 4) for parts in found)


def nearest(x: Tensor) -> Tensor:
    """Returns for each image the mean cosine of a token with the one most similar to it, ``[B, N, C]`` to ``[B]``."""
    unit = F.normalize(x.float(), dim=-1)
    cosine = unit @ unit.transpose(1, 2)
    own = torch.eye(x.size(1), dtype=torch.bool, device=x.device)
    return cosine.masked_fill(own, -torch.inf).amax(dim=2).mean(dim=1)
