"""Models to measure, by name: timm's own names, and some of other libraries, with random weights."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tokengraph.adapters import find_adapter

OTHERS = ("transformers/vit_small", "transformers/dinov2_small", "torchvision/vit_b_16")


@dataclass(frozen=True)
class Shape:
    """The sizes on which the cost of a model's blocks depends, and the images that it takes."""

    image: tuple[int, int]
    patches: int
    depth: int
    channels: int
    hidden: int
    num_prefix: int
    has_class_token: bool

    @classmethod
    def of(cls, model: nn.Module) -> Shape:
        """Of any model that ``attach`` supports."""
        core, adapter = find_adapter(model)
        blocks, (rows, columns) = adapter.blocks(core), adapter.grid(core)
        patch = next(m.stride for m in adapter.embedding(core).modules() if isinstance(m, nn.Conv2d))
        hidden = next(m.out_features for m in blocks[0].mlp.modules() if isinstance(m, nn.Linear))  # type: ignore[union-attr]
        return cls(
            (rows * int(patch[0]), columns * int(patch[1])),
            rows * columns,
            len(blocks),
            adapter.channels(core),
            hidden,
            adapter.num_prefix(core),
            adapter.has_class_token(core),
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """What :func:`tokengraph.cost.vit_cost` wants."""
        return {"channels": self.channels, "num_prefix": self.num_prefix, "hidden": self.hidden}


def make(name: str, image_size: int | None = None) -> nn.Module:
    """A model in evaluation mode, the same weights each time.

    Args:
        name: A name of timm's, or one of ``OTHERS``.
        image_size: In pixels; ``None``: the model's own.
    """
    torch.manual_seed(0)
    if name == "torchvision/vit_b_16":
        from tokengraph.compat import torchvision

        return torchvision.models.vit_b_16(image_size=image_size or 224).eval()
    if name in OTHERS:
        from tokengraph.compat import transformers

        kind, patch = ("ViT", 16) if "vit_small" in name else ("Dinov2", 14)
        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": patch}
        sizes |= {"intermediate_size": 1536} if kind == "ViT" else {"mlp_ratio": 4}
        config = getattr(transformers, f"{kind}Config")(**sizes, image_size=image_size or 224)
        model = getattr(transformers, f"{kind}Model")
        pools = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model).parameters else {}
        return model(config, **pools).eval()
    from tokengraph.compat import timm

    options = {} if image_size is None else {"img_size": image_size}
    return timm.create_model(name, pretrained=False, **options).eval()
