"""A model and its inputs, for the laws of models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.adapters.base import Adapter
from tokengraph.attach.attach import Attachment, attach


@dataclass(frozen=True)
class ModelCase:
    """A model and its inputs.

    Args:
        make: Makes the model, with the same weights each time, in evaluation mode.
        inputs: The positional inputs of the model; tensors have one row per image, for at least two images.
        named: The inputs by name.
        adapter: The adapter, for models that ``attach`` cannot recognise.
        alone: Whether the output for an image should be the same alone and in a batch; False for random models.
        one_graph: Whether ``torch.compile`` should make one graph; False if images of a batch differ in shape.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    alone: bool = True
    one_graph: bool = True

    def attach(self, model: nn.Module, schedule: Any = 2) -> Attachment:
        """Attaches ToMe, which merges tokens, in every block."""
        return attach(model, "tome", schedule, adapter=self.adapter)

    def run(self, model: nn.Module, images: slice = slice(None)) -> list[Tensor]:
        """Returns every tensor of the model's output, with fixed random numbers."""

        def some(value: Any) -> Any:
            return value[images] if isinstance(value, Tensor) else value

        torch.manual_seed(7)
        return tensors(model(*map(some, self.inputs), **{k: some(v) for k, v in self.named.items()}))

    @property
    def prefix(self) -> int:
        """Number of prefix tokens before the patches."""
        core, adapter = find_adapter(self.make(), self.adapter)
        return adapter.num_prefix(core)

    def images_first(self, x: Tensor) -> Tensor:
        """Returns tokens as ``[B, N, C]``, also from blocks that use ``[N, B, C]``."""
        given = (t for t in (*self.inputs, *self.named.values()) if isinstance(t, Tensor))
        images = next(given).size(0)
        return x if x.size(0) == images else x.transpose(0, 1)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Returns the blocks of the model."""
        if self.adapter is not None:
            return self.adapter.blocks(model)
        core, adapter = find_adapter(model)
        return adapter.blocks(core)


def tensors(output: Any) -> list[Tensor]:
    """Returns the floating-point tensors of an output, nested ones too."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return [t for value in values for t in tensors(value)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """True if two outputs have the same tensors, bit for bit; False if they have none."""
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def anatomy(model: nn.Module) -> list[tuple[type, list[int]]]:
    """Returns the class of each module, and its numbers of hooks and hook flags."""
    kinds = [f"_forward{pre}_hooks{flag}" for pre in ("", "_pre") for flag in ("", "_with_kwargs")]
    kinds.append("_forward_hooks_always_called")
    return [(type(m), [len(getattr(m, kind)) for kind in kinds]) for m in model.modules()]
