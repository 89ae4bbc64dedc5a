"""Runs a block on images with different numbers of tokens: in groups of similar images, so that little is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokengraph.flat.layout import Layout
from tokengraph.flat.looks import may_write

PADDING = 0.1  # share of a group's rows that may be padding
_GROUPS = [True]


@contextmanager
def one_group() -> Iterator[None]:
    """Pads all images of a batch to the longest one within the ``with``, to compare with groups."""
    _GROUPS.append(False)
    try:
        yield
    finally:
        _GROUPS.pop()


def groups_of(counts: Sequence[int]) -> list[list[int]]:
    """Groups images so that padding is at most a tenth of each group's rows, longest images first.

    Args:
        counts: Tokens of each image, prefix tokens counted.

    Returns:
        Numbers of images; each image is in one group.

    Example:
        >>> groups_of([100, 40, 95, 42])
        [[0, 2], [3, 1]]
    """
    groups: list[list[int]] = []
    total = 0
    for image in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if groups:
            rows = counts[groups[-1][0]] * (len(groups[-1]) + 1)
            if rows - total - counts[image] <= PADDING * rows:
                groups[-1].append(image)
                total += counts[image]
                continue
        groups.append([image])
        total = counts[image]
    return groups


def in_groups(
    run: Callable[[Tensor, Any], Tensor], x: Tensor, bias: Any, layout: Layout, num_prefix: int, side: dict[str, Any]
) -> Tensor:
    """Runs part of a block, where images have different numbers of tokens in groups of similar ones.

    On CPU alone: there a group costs little more than its rows. It is not measured on a GPU, where the batch stays
    padded to the longest image. So it does for inputs that have a row for each token, such as rotary tables.

    Args:
        run: The part, which takes rows ``[b, P+n, C]`` and their bias.
        x: Rows of all images, ``[B, P+n, C]``; behind the tokens of an image is padding.
        bias: The bias on the attention's logits, ``[B, 1, 1, P+n]``, or ``None``.
        layout: How the patch tokens lie.
        num_prefix: P.
        side: The block's other inputs.

    Returns:
        ``[B, P+n, C]``; zeros at padding, where groups were made.

    Cost: one copy of the rows, there and back.
    """
    if layout.counts is None or not _splits(x, bias, side):
        return run(x, bias)
    counts = [num_prefix + count for count in layout.counts]
    groups = groups_of(counts)
    if len(groups) == 1:
        return run(x, bias)
    out = x.new_zeros(x.shape)
    for group in groups:
        index, width = torch.tensor(group, device=x.device), counts[group[0]]
        if not width:  # images without any token come last
            continue
        own = None if bias is None else bias.index_select(0, index)[..., :width]
        if own is not None and not bool(own.any()):
            own = None  # no padding and no sizes: the attention needs no mask
        out[:, :width].index_copy_(0, index, run(x[:, :width].index_select(0, index), own))
    return out


def _splits(x: Tensor, bias: Any, side: dict[str, Any]) -> bool:
    """Returns whether rows and bias can be taken apart by images, and it pays on this device."""
    if not (_GROUPS[-1] and x.device.type == "cpu" and may_write(x)):
        return False
    if any(isinstance(value, Tensor | tuple) for value in side.values()):
        return False
    return bias is None or (isinstance(bias, Tensor) and bias.dim() == 4 and bias.shape[:3] == (x.size(0), 1, 1))
