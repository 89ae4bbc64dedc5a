"""What a family of vision-language models has to say: the tiles of its features, and the positions of a prompt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokengraph.vlm.columns import positions_in_order
from tokengraph.vlm.visual import Visual

Inputs = Mapping[str, Any]
TOKEN_NAMES = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


@dataclass(frozen=True)
class Tile:
    """Tokens that a strategy sees together: a tile of an image, or a frame of a video.

    Args:
        rows: Their rows among the image's features, ``[n]`` int64.
        grid: ``(H, W)`` or ``(T, H, W)`` on which they lie, row by row; ``None`` if on none.
        source: Their patches in the tower's output, ``[n]`` ids into ``[tiles * patches]`` of all images; ``None`` if
            token i of tile b is patch i, or a square of patches, of tower row b.
    """

    rows: Tensor
    grid: tuple[int, ...] | None
    source: Tensor | None = None


class Family:
    """Models whose image tokens are counted one after another. The base of all families.

    A family is found by what a model has; see :func:`tokengraph.vlm.families.find.find_family`.

    Attributes:
        name: For the record.
        needs_ids: True if the model finds positions by the ids of the prompt.
    """

    name: ClassVar[str] = "placeholders"
    needs_ids: ClassVar[bool] = False

    def serves(self, base: Any) -> bool:
        """Returns whether the model, without its language head, is of this family."""
        return True

    def token(self, base: Any, modality: str) -> int | None:
        """Id of the placeholder; ``None`` if the model has none for this modality."""
        found = (getattr(base.config, name, None) for name in TOKEN_NAMES[modality])
        return next((int(i) for i in found if isinstance(i, int)), None)

    def prepare(self, base: Any, visual: Visual) -> None:
        """Tells the images of an entry of the encoder's output apart, where it holds several."""

    def tiles(self, base: Any, inputs: Inputs, visual: Visual) -> list[list[Tile]]:
        """The tiles of each image. Rows in no tile, such as line breaks, always remain."""
        return [[Tile(torch.arange(n, device=visual.rows.device), square(n))] for n in visual.counts]

    def positions(self, base: Any, inputs: Inputs, ids: Tensor, mask: Tensor, marks: Tensor) -> Tensor:
        """Positions of the whole prompt, ``[B, L]`` or ``[A, B, L]``, before any column leaves.

        Args:
            base: The model without its language head.
            inputs: The inputs as given.
            ids: ``[B, L]``.
            mask: ``[B, L]``.
            marks: ``[B, L]`` int64: 1 at placeholders of images, 2 at those of videos.
        """
        return positions_in_order(mask)


def square(count: int) -> tuple[int, int] | None:
    """``(S, S)`` if the count is a square, otherwise ``None``."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def call_with(function: Callable[..., Any], arguments: Inputs, **more: Any) -> Any:
    """Calls a function with those arguments that its signature names."""
    names = inspect.signature(function).parameters
    known = {name: value for name, value in arguments.items() if name in names and name != "kwargs"}
    return function(**known, **{k: v for k, v in more.items() if k in names or "kwargs" in names})
