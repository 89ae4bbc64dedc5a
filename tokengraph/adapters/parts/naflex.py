"""Images of any shape in one padded batch (NaFlex): their grids, and their tokens without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters.base import tokens_after
from tokengraph.edges.grid import Grids


def image_shapes(width: int, mask: Tensor | None, shapes: Tensor | None) -> tuple[Grids, Tensor | None]:
    """Reads the grid of each image, and checks the mask of patches.

    Args:
        width: N, patches an image with its padding.
        mask: ``[B, N]``, nonzero where there is a patch; ``None``: everywhere.
        shapes: ``[B, 2]`` ints, (H, W) of each image.

    Returns:
        The grids, and the mask ``[B, N]`` bool; ``None`` where nothing is padded.

    Raises:
        ValueError: If ``shapes`` is missing, or the mask is not that of each image's first ``H * W`` patches.

    Cost: two host synchronisations on CUDA.
    """
    if shapes is None:
        raise ValueError(
            "Expected spatial_shapes [B, 2] with the patches (got None). The model's processor gives them."
        )
    grids = tuple((int(h), int(w)) for h, w in shapes.tolist())
    counts = [h * w for h, w in grids]
    present = torch.arange(width, device=shapes.device) < torch.tensor(counts, device=shapes.device)[:, None]
    given = torch.ones_like(present) if mask is None else mask.to(shapes.device).bool()
    if given.shape != present.shape or not torch.equal(given, present) or max(counts, default=0) > width:
        have = given.sum(dim=1).tolist() if given.dim() == 2 else list(given.shape)
        raise ValueError(
            f"Expected a mask of the first H * W patches of each image, {counts} of {width} (got {have}). Give mask "
            "and shapes as the model's own processor makes them."
        )
    if all(n == width for n in counts):
        return grids, None
    return grids, present if mask is None else present.to(mask.device)


def tokens_of_each(
    blocks: Sequence[nn.Module], layer: int, run: Callable[[], Any], grids: Grids, num_prefix: int
) -> list[Tensor]:
    """Runs a model and returns the tokens ``[P+N_b, C]`` of each image, without padding, after ``layer`` blocks.

    Args:
        blocks: The model's blocks, in order.
        layer: Number of finished blocks; negative: counted from the end.
        run: Calls the model.
        grids: ``(H, W)`` of each image.
        num_prefix: P.

    Raises:
        ValueError: If there is no such layer.
    """
    tokens = tokens_after(blocks, layer, run)
    return [rows[: num_prefix + h * w] for rows, (h, w) in zip(tokens, grids, strict=True)]
