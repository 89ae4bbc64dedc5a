"""Where a model lets us in: one file a framework, found by asking each whether it serves the model."""

from __future__ import annotations

from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.adapters.timm import TimmViT
from tokengraph.adapters.timm_eva import TimmEva
from tokengraph.adapters.torchvision import TorchvisionViT
from tokengraph.adapters.transformers import TransformersViT
from tokengraph.adapters.transformers_older import OlderTransformersViT

ADAPTERS: list[Adapter] = [TimmViT(), TimmEva(), TorchvisionViT(), TransformersViT(), OlderTransformersViT()]


def find_adapter(model: nn.Module) -> tuple[nn.Module, Adapter]:
    """Finds the supported model: ``model`` itself, or the one inside it (a wrapper, a segmenter's backbone).

    Returns:
        The model that has the blocks, and its adapter.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If none is supported, or several are inside; the message lists what was seen.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a model as nn.Module (got {type(model).__name__}).")
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "Expected a model that is not in nn.DataParallel (got one): its replicas would share one record. "
            "Use DistributedDataParallel."
        )
    found: list[tuple[nn.Module, Adapter]] = []
    for module in model.modules():
        for adapter in ADAPTERS:
            if adapter.serves(module):
                found.append((module, adapter))
        if found and module is model:
            break
    if len(found) == 1:
        return found[0]
    supported = ", ".join(a.family for a in ADAPTERS)
    if found:
        names = ", ".join(type(m).__name__ for m, _ in found)
        raise ValueError(f"Expected one supported model (got {len(found)} inside: {names}). Attach to each by itself.")
    blocks = sorted({type(m).__name__ for m in model.modules() if "block" in type(m).__name__.lower()})
    seen = f" with blocks {', '.join(blocks)}" if blocks else ""
    raise ValueError(
        f"Expected a supported model (got {type(model).__name__}{seen}). Supported: {supported}. "
        "Windowed and hierarchical models (Swin, ConvNeXt, Hiera) and cross-covariance attention (XCiT) keep tokens in "
        "places that a coarsened sequence does not have. tg.WindowCoarsening(...) serves timm's Swin and SAM, "
        "tg.DynamicSpatial() Swin and ConvNeXt; features of any model can be clustered: see tg.TokenGraph.from_tokens."
    )


__all__ = ["ADAPTERS", "Adapter", "find_adapter"]
