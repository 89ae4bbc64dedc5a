"""A model and what it takes, for the laws of models."""

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
    """A model and what it takes.

    Args:
        make: Makes the model, with the same weights each time, in evaluation mode.
        inputs: What the model is called with; tensors have one row an image, two images at least.
        named: The same by name.
        adapter: For models that ``attach`` cannot recognise.
        alone: Whether an image's output should be the same alone and in a batch; not where the model draws at random.
        one_graph: Whether ``torch.compile`` should make one graph of it; not where images of a batch differ in shape.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    adapter: Adapter | None = None
    alone: bool = True
    one_graph: bool = True

    def attach(self, model: nn.Module, schedule: Any = 2) -> Attachment:
        """ToMe, which merges, in every block."""
        return attach(model, "tome", schedule, adapter=self.adapter)

    def run(self, model: nn.Module, images: slice = slice(None)) -> list[Tensor]:
        """Every tensor of the model's output, the same random numbers each time."""

        def some(value: Any) -> Any:
            return value[images] if isinstance(value, Tensor) else value

        torch.manual_seed(7)
        return tensors(model(*map(some, self.inputs), **{k: some(v) for k, v in self.named.items()}))

    @property
    def prefix(self) -> int:
        """Prefix tokens in front of the patches."""
        core, adapter = find_adapter(self.make(), self.adapter)
        return adapter.num_prefix(core)

    def images_first(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, C]`` from a block that may hand on ``[N, B, C]``."""
        given = (t for t in (*self.inputs, *self.named.values()) if isinstance(t, Tensor))
        images = next(given).size(0)
        return x if x.size(0) == images else x.transpose(0, 1)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of the model."""
        if self.adapter is not None:
            return self.adapter.blocks(model)
        core, adapter = find_adapter(model)
        return adapter.blocks(core)


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, nested ones too."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    values = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return [t for value in values for t in tensors(value)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two outputs have the same tensors, bit for bit; False where there are none."""
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def anatomy(model: nn.Module) -> list[tuple[type, list[int]]]:
    """Class of each module, and how many hooks it has and flags of hooks."""
    kinds = [f"_forward{pre}_hooks{flag}" for pre in ("", "_pre") for flag in ("", "_with_kwargs")]
    kinds.append("_forward_hooks_always_called")
    return [(type(m), [len(getattr(m, kind)) for kind in kinds]) for m in model.modules()]
