"""YOLOS of transformers: detection tokens behind the patches, and positions that are added between layers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import is_a
from tokengraph.adapters.coarse import SITE, Coarse, CoarseBlock, CoarseSite, ours, site_of
from tokengraph.adapters.transformers.older import OlderTransformersViT
from tokengraph.adapters.transformers.outputs import lift_output
from tokengraph.attention.keep_mask import KeepMask
from tokengraph.maps.lineage import Lineage

ORIGIN = "transformers.models.yolos.modeling_yolos"
ENCODER = ["self", "hidden_states", "height", "width"]  # arguments of the encoder that the mixin runs


class YolosLayer(CoarseBlock):
    """``YolosLayer`` that can coarsen its tokens, which come with detection tokens in front of the patches."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Takes ``[B, P+n, C]``, detection tokens among the P prefix tokens."""
        return self.coarse(hidden_states)


class YolosEncoder(Coarse):
    """``YolosEncoder``: moves detection tokens in front while layers are coarse, and averages positions by cluster."""

    layer: Any
    interpolation: Any

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Any:
        """Takes and returns ``[B, 1+N+D, C]`` in the order of the stock encoder; fewer tokens if patches left."""
        trace, config = site_of(self).trace, self.config  # type: ignore[attr-defined]
        run, count = trace.run, int(config.num_detection_tokens)
        x, start = hidden_states, run.start  # type: ignore[attr-defined]
        table = self.interpolation((height, width)) if config.use_mid_position_embeddings else None
        for index, layer in enumerate(self.layer):
            x = layer(front(x, count) if index == start else x)
            if table is not None and index + 1 < len(self.layer):
                x = x + _positions(trace, table[index].to(x.device), index + 1, count, x)
        return sys.modules[ORIGIN].BaseModelOutput(last_hidden_state=back(x, count))


def _positions(trace: Any, table: Tensor, layer: int, count: int, x: Tensor) -> Tensor:
    """The positions ``[1 or B, P+n, C]`` of the tokens after ``layer`` blocks, in their order."""
    if layer <= trace.run.start:
        return table
    table, lineage, prefix = front(table, count), trace.lineage(layer), trace.num_prefix
    if not lineage.coarse:
        return table
    images = lineage.start.images
    rows = lineage.averaged(table[:, prefix:].expand(images, -1, -1).flatten(0, 1)).to(table.dtype)
    return torch.cat([table[:, :prefix].expand(images, -1, -1), rows], dim=1)


class TransformersYolos(OlderTransformersViT):
    """``YolosModel``, also inside ``YolosForObjectDetection``. The class and detection tokens are prefix tokens.

    While nothing is coarse, layers see the stock order, which keeps results bit-identical. The model returns the stock
    order, with fewer patches in the middle unless ``lift=True``.
    """

    family = "transformers YOLOS"
    block_mixin = YolosLayer

    def serves(self, model: Any) -> bool:
        """Returns whether the model is a ``YolosModel`` with layers of the older kind."""
        return is_a(model, ORIGIN, "YolosModel") and hasattr(model.encoder.layer[0].attention, "attention")

    def check_around(self, model: Any, core: nn.Module) -> None:
        """Raises ValueError if the encoder takes other arguments than the mixin gives."""
        encoder: Any = core.encoder
        takes = list(inspect.signature(type(encoder).forward).parameters)
        if takes != ENCODER:
            raise ValueError(f"Expected a YOLOS encoder that takes {', '.join(ENCODER[1:])} (got {takes[1:]}).")

    def wants_whole(self, model: Any, core: nn.Module) -> bool:
        """Returns False: the head reads detection tokens alone."""
        return False

    def num_prefix(self, model: Any) -> int:
        """The class token and the detection tokens."""
        return 1 + model.embeddings.detection_tokens.size(1)

    def mixins(self, model: Any) -> list[tuple[nn.Module, type]]:
        """The encoder."""
        return [(model.encoder, YolosEncoder)]

    def patches_last(self, block: Any, x: Tensor) -> Tensor:
        """Moves detection tokens in front of the patches, unless attaching has done so."""
        return x if SITE in block.__dict__ else front(x, detection_tokens(block))

    def stock_order(self, block: Any, x: Tensor) -> Tensor:
        """Moves them back."""
        return x if SITE in block.__dict__ else back(x, detection_tokens(block))

    def whole(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Runs both halves; in the stock order if nothing is coarse."""
        if mask is not None or side.pop("coarse", False):
            return super().whole(block, x, mask)
        count = detection_tokens(block)
        return front(super().whole(block, back(x, count), None), count)

    def attend(self, block: Any, x: Tensor, mask: Tensor | KeepMask | None, **side: Any) -> Tensor:
        """Norm, attention and the residual."""
        return super().attend(block, x, mask)

    def carry(self, side: dict[str, Any], lineage: Lineage, block: Any) -> dict[str, Any]:
        """Notes that tokens are coarse."""
        return {**side, "coarse": True}

    def outputs(self, model: Any, core: nn.Module) -> list[tuple[nn.Module, str, Callable[..., Any]]]:
        """Hooks: hidden states in the stock order; ``lift=True`` lifts them and the last tokens."""
        return [(core, "output", lift_in_order)]

    def features(self, model: Any, images: Tensor, layer: int) -> tuple[Tensor, tuple[int, ...]]:
        """Tokens with the detection tokens in front of the patches."""
        tokens, grid = super().features(model, images, layer)
        return front(tokens, model.embeddings.detection_tokens.size(1)), grid


@ours
def lift_in_order(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of the model: lifts what ``lift=True`` asks for, and gives hidden states in the stock order."""
    site: CoarseSite = module.__dict__[SITE]
    count, start = site.trace.num_prefix - 1, site.trace.run.start  # type: ignore[attr-defined]
    depth = site.trace.depth

    def states(given: Any) -> Any:
        moved = [
            back(h, count) if h is not None and (layer > start or layer == start == 0) else h
            for layer, h in enumerate(given)
        ]
        return tuple(moved)

    if isinstance(output, tuple):
        output = lift_output(module, args, (front(output[0], count), *output[1:]))
        is_states = [isinstance(part, tuple) and len(part) == depth + 1 for part in output[1:]]
        return (back(output[0], count), *(states(p) if s else p for p, s in zip(output[1:], is_states, strict=True)))
    output.last_hidden_state = front(output.last_hidden_state, count)
    output = lift_output(module, args, output)
    output.last_hidden_state = back(output.last_hidden_state, count)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = states(output.hidden_states)
    return output


def detection_tokens(block: Any) -> int:
    """Number of detection tokens, by the config that the block's attention holds."""
    return int(block.attention.attention.config.num_detection_tokens)


def front(x: Tensor, count: int) -> Tensor:
    """Moves the last ``count`` tokens of ``[B, 1+n+count, C]`` behind the first."""
    return torch.cat([x[:, :1], x[:, x.size(1) - count :], x[:, 1 : x.size(1) - count]], dim=1)


def back(x: Tensor, count: int) -> Tensor:
    """Undoes :func:`front`."""
    return torch.cat([x[:, :1], x[:, 1 + count :], x[:, 1 : 1 + count]], dim=1)
