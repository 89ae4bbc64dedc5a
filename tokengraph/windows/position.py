"""Relative positions and shift masks for windows of another size than a model was trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.flat.segment import wide
from tokengraph.flat.tables import table
from tokengraph.windows.grid import Pair, split

APART = -100.0  # Swin adds it to the logits between tokens that are neighbours only because of the shift


def resized_bias(parameters: Tensor, window: Pair, wanted: Pair) -> Tensor:
    """Resizes Swin's relative position bias to another window; the parameter itself does not change.

    Args:
        parameters: The table, ``[(2a-1)*(2b-1), H]``. Gradients reach it.
        window: ``(a, b)`` of the table.
        wanted: ``(h, w)``; the table is resized bilinearly to ``(2h-1, 2w-1)``, as published.

    Returns:
        ``[1, H, h*w, h*w]``, in the dtype of the table.

    Cost: ``O(H h^2 w^2)``.

    Source: Liang et al., *Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning*,
    NeurIPS 2022, released code. Differs: the parameter stays (published: replaced at the first forward).
    """
    rows, columns = 2 * window[0] - 1, 2 * window[1] - 1
    size = (2 * wanted[0] - 1, 2 * wanted[1] - 1)
    entries = parameters
    if size != (rows, columns):
        image = parameters.t().reshape(1, -1, rows, columns)
        image = F.interpolate(image.to(wide(image)), size=size, mode="bilinear", align_corners=False)
        entries = image.flatten(2)[0].t().to(parameters.dtype)
    tokens = wanted[0] * wanted[1]
    index = relative_index(*wanted, str(parameters.device))
    bias = entries.index_select(0, index.flatten()).view(tokens, tokens, -1)
    return bias.permute(2, 0, 1).contiguous()[None]


@table(64)
def relative_index(height: int, width: int, device: str) -> Tensor:
    """Row of the table for each pair of tokens of a window, ``[h*w, h*w]`` int64, query first."""
    y = torch.arange(height, device=device).repeat_interleave(width)
    x = torch.arange(width, device=device).repeat(height)
    down = y[:, None] - y[None] + height - 1
    right = x[:, None] - x[None] + width - 1
    return down * (2 * width - 1) + right


def shift_mask(grid: Pair, window: Pair, shift: Pair, like: Tensor) -> Tensor | None:
    """Mask for the logits of shifted windows, ``[n*m, h*w, h*w]`` in the dtype of ``like``; ``None``: no shift.

    Args:
        grid: ``(H, W)`` of the map, a multiple of the window.
        window: ``(h, w)``.
        shift: By how much the map was rolled up and to the left.
        like: A tensor of the wanted device and dtype.
    """
    if not any(shift):
        return None
    return _shift_mask(*grid, *window, *shift, str(like.device)).to(like.dtype)


@table(64)
def _shift_mask(height: int, width: int, a: int, b: int, down: int, right: int, device: str) -> Tensor:
    """Zero between tokens that were neighbours before the roll, ``APART`` between others."""
    row, column = (_region(*each, device) for each in ((height, a, down), (width, b, right)))
    region = split((row[:, None] * 3.0 + column)[None, :, :, None], (a, b))[0][..., 0]
    return (region[:, None] != region[:, :, None]) * APART


def _region(length: int, window: int, shift: int, device: str) -> Tensor:
    """Along an axis: 0 before the last window, then 1, and 2 for rows that the roll moved in from the other end."""
    place = torch.arange(length, device=device)
    return (place >= length - window).float() + (place >= length - shift).float() * (shift > 0)
