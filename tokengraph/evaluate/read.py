"""Runs a model of any library and returns its logits, class token, patch map and token counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import Adapter
from tokengraph.evaluate.own import find_own

FINAL_NORMS = ("norm", "layernorm", "post_layernorm", "ln_post", "layer_norm", "encoder.ln")


@dataclass(frozen=True)
class Outputs:
    """The outputs of a run on B images.

    Args:
        logits: A classifier's ``[B, K]`` or a segmenter's ``[B, K, H, W]``; ``None`` if the model has no head.
        token: ``[B, C]`` after the final norm: the class token, or the mean of patches if the model has none.
        patches: ``[B, C, h, w]`` after the final norm, every input patch; dropped ones are zeros. ``None`` if unknown.
        pooled: ``[B, C]`` or ``[B, 2 C]``: the class token, and the mean over the patches that are represented.
        counts: Patch tokens before the first block and after each, ``[depth + 1, B]`` floats; ``None`` if unknown.
    """

    logits: Tensor | None
    token: Tensor | None = None
    patches: Tensor | None = None
    pooled: Tensor | None = None
    counts: Tensor | None = None


class Reader:
    """Runs a model, plain or attached, and reads its outputs.

    Args:
        model: The model, in eval mode; unsupported models give no tokens, only their return value.
        handle: The handle of :func:`tokengraph.attach`, if a strategy is attached.
        adapter: The adapter given to :func:`tokengraph.attach`, for a model of the user's own.
    """

    def __init__(self, model: nn.Module, handle: Any = None, adapter: Adapter | None = None) -> None:
        self.model, self.handle = model, handle
        self.core, self.adapter = _find(model, adapter)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Runs ``images [B, 3, H, W]``.

        Cost: the run, one norm of ``[B, P+N, C]`` and one lift.
        """
        if self.adapter is None:
            return Outputs(_logits(self.model, self.model(images)))
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        hook = self.adapter.blocks(self.core)[-1].register_forward_hook(keep)
        try:
            logits = _logits(self.model, self.model(images))
        finally:
            hook.remove()
        if len(seen) != 1 or seen[0].dim() != 3:  # a model that runs its blocks several times
            return Outputs(logits)
        return self._read(self.adapter, images, logits, seen[0])

    def _read(self, adapter: Adapter, images: Tensor, logits: Tensor | None, tokens: Tensor) -> Outputs:
        prefix = adapter.num_prefix(self.core)
        normed = final_norm(self.core)(tokens)
        lifted, present = self._lift(tokens, normed, prefix)
        total = present.sum(dim=1).clamp_min(1e-6)
        mean = lifted.sum(dim=1) / total
        has_class = adapter.has_class_token(self.core)
        token = normed[:, 0] if has_class else mean
        grid = adapter.image_grid(adapter.embedding(self.core), images)
        if math.prod(grid) != lifted.size(1) and self.handle is not None:  # a plan scales images in the model
            grid = getattr(self.handle.trace, "grid", grid)
        whole = math.prod(grid) == lifted.size(1)
        patches = lifted.transpose(1, 2).reshape(lifted.size(0), -1, *grid) if whole else None
        pooled = torch.cat([token, mean], dim=1) if has_class else mean
        return Outputs(logits, token, patches, pooled, self._counts(adapter, tokens, prefix))

    def _lift(self, tokens: Tensor, normed: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """Returns normed rows of every patch ``[B, N, C]``, and the represented share of each, ``[B, N, 1]``."""
        if self.handle is None or not hasattr(self.handle.trace, "lift"):
            rows = normed[:, prefix:]
            return rows, torch.ones_like(rows[..., :1])
        trace = self.handle.trace
        if self.handle.select.stores:  # stored features are from before the norm
            rows = final_norm(self.core)(trace.lift(tokens, replenish=True))
            return rows, torch.ones_like(rows[..., :1])
        return trace.lift(normed), trace.lift(torch.ones_like(normed[..., :1]))

    def _counts(self, adapter: Adapter, tokens: Tensor, prefix: int) -> Tensor:
        depth = len(adapter.blocks(self.core))
        if self.handle is None or not hasattr(self.handle.trace, "worked_per_image"):
            return torch.full((depth + 1, tokens.size(0)), float(tokens.size(1) - prefix))
        trace = self.handle.trace
        return torch.tensor([trace.worked_per_image(layer) for layer in range(depth + 1)], dtype=torch.float32)


def final_norm(core: nn.Module) -> nn.Module:
    """Returns the norm after the last block, or an identity."""
    for path in FINAL_NORMS:
        found: Any = core
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    return nn.Identity()


def _find(model: nn.Module, own: Adapter | None) -> tuple[nn.Module, Adapter | None]:
    try:
        core, adapter = find_own(model, own)
        adapter.blocks(core)
    except ValueError:
        return model, None
    return core, adapter


def _logits(model: Any, output: Any) -> Tensor | None:
    """Returns the logits of a model's head; ``None`` if the output is features."""
    named = getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named if named.dim() in (2, 4) else None
    if not isinstance(output, Tensor) or output.dim() not in (2, 4):
        return None
    if output.dim() == 2 and not has_head(model):
        return None
    return output


def has_head(model: Any) -> bool:
    """Returns whether a 2-D output of the model is logits, judged by the names of its head."""
    if hasattr(model, "num_classes"):  # timm
        return bool(model.num_classes)
    if type(model).__module__.startswith("open_clip"):
        return False
    head = next((getattr(model, n) for n in ("heads", "head", "fc", "classifier") if hasattr(model, n)), None)
    return head is None or any(isinstance(m, nn.Linear | nn.Conv2d) for m in head.modules())
