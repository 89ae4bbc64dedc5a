"""The source of a model, which builds it for each input size, so that position tables are resampled only once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter
from tokengraph.adapters.coarse import SITE
from tokengraph.adapters.pause import is_paused
from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.libraries import LIBRARIES, Found
from tokengraph.evaluate.resolution import resized
from tokengraph.io.checkpoints import load_checkpoint


@dataclass(frozen=True)
class Source:
    """A model that can be built at any input size.

    Args:
        name: Its name in reports.
        build: ``build(size)`` returns the model in eval mode for square images of ``size`` pixels, or of its own size
            for ``None``.
        config: The checkpoint's preprocessing; ``None`` reads it from the model.
        weights: A description of the weights' origin, for reports.
        adapter: The adapter of a model of a user's own, as for :func:`tokengraph.attach`.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    config: DataConfig | None = None
    weights: str = "given"
    adapter: Adapter | None = None


def source_of(
    model: str | nn.Module | Source,
    *,
    checkpoint: Any = None,
    num_classes: int | None = None,
    random_weights: bool = False,
    adapter: Adapter | None = None,
) -> Source:
    """Returns the source of a model given by name, module or source.

    Args:
        model: A :class:`Source`, a module, or a name: ``"timm:NAME"``, ``"transformers:REPOSITORY"`` (or a folder),
            ``"open_clip:NAME:TAG"``, ``"torchvision:NAME"``. Without a prefix: timm's, or with a slash transformers'.
        checkpoint: A file of weights, which must have all of the model's.
        num_classes: Classes of the checkpoint's head, if it is not the model's usual one; 0 if it has none.
        random_weights: Uses random weights instead of pretrained ones; figures are then meaningless.
        adapter: The adapter of a model of a user's own; only beside a module.

    Raises:
        ValueError: If the name is unknown or its weights cannot be loaded.
        ImportError: If the library is not installed; names the extra.
        TypeError: For another kind of object.
    """
    if adapter is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected a module beside adapter (got {type(model).__name__}). A Source has an adapter of its own."
        )
    if isinstance(model, Source):
        return model
    if isinstance(model, nn.Module):
        if any(SITE in m.__dict__ for m in model.modules()) and not is_paused(model):
            raise ValueError(
                "Expected a plain model (got one with a strategy attached, which would pass for the dense model). Call "
                "handle.remove() first and name the strategy as a setting, or use tg.fidelity(model, images, handle)."
            )
        if checkpoint is not None:
            _load(model, checkpoint, type(model).__name__)
        if adapter is not None:
            find_adapter(model, adapter)  # one that does not serve the model is an error now, not after hours
        return Source(type(model).__name__, _Copies(model.eval(), adapter), weights="as given", adapter=adapter)
    if not isinstance(model, str):
        raise TypeError(f"Expected a model as name, nn.Module or Source (got {type(model).__name__}).")
    library, name = _library(model)
    found: Found = LIBRARIES[library](name, checkpoint is None and not random_weights, num_classes)
    if checkpoint is None:
        return Source(model, found.build, found.config, "random" if random_weights else found.weights)
    first = found.build(None)
    _load(first, checkpoint, name)
    return Source(model, _Copies(first), found.config, f"checkpoint {checkpoint}")


def _load(model: nn.Module, checkpoint: Any, name: str) -> None:
    """Loads a checkpoint; raises if it lacks weights, because figures with random parts would be meaningless."""
    report = load_checkpoint(model, checkpoint)
    if report.missing or report.mismatched:
        told = "; ".join(line[:120] for line in str(report).splitlines())
        raise ValueError(
            f"Expected a checkpoint for the whole of {name} (got one that {told}). For a head of other size give "
            "num_classes (--num-classes N; 0: no head)."
        )


def _library(text: str) -> tuple[str, str]:
    prefix, colon, name = text.partition(":")
    if colon and prefix in LIBRARIES and name:
        return prefix, name
    if "/" in text and not text.startswith("hf"):
        return "transformers", text
    return "timm", text


class _Copies:
    """Builds other sizes of one module by resampling the positions of a copy."""

    def __init__(self, model: nn.Module, adapter: Adapter | None = None) -> None:
        self.model, self.adapter = model, adapter

    def __call__(self, size: int | None) -> nn.Module:
        return self.model if size is None else resized(copy.deepcopy(self.model), size, self.adapter)
