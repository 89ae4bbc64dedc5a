"""Runs a block on images with different numbers of tokens: padded, in groups of similar images, or packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.attention.jagged import Jagged, has_jagged
from tokengraph.attention.size_bias import SizeBias
from tokengraph.flat.layout import Layout
from tokengraph.flat.looks import may_write
from tokengraph.flat.tables import table

PADDING = 0.1  # share of a group's rows that may be padding
WAYS = ("auto", "padded", "groups", "packed")
# What "auto" does by device type, as measured (benchmarks/ragged.py); "padded" on all others. CUDA was not measured.
BEST = {"cpu": "groups"}
_WAY: ContextVar[str] = ContextVar("ragged_batches", default="auto")


@contextmanager
def ragged_batches(way: str) -> Iterator[None]:
    """Chooses how attached models run images that keep different numbers of tokens, within the ``with``.

    Outputs are equal up to rounding. With gradients, the default stays. Compiled models, ``torch.func`` and blocks that
    take more inputs than tokens and mask (rotary tables) run padded, and so does attention that the strategy reads, and
    packed images in a block that trains. Hooks inside a block see the groups, or one packed sequence; hooks on
    ``nn.MultiheadAttention`` allow no packing.

    Args:
        way: ``"padded"``: to the longest image, with a mask. ``"groups"``: each of similar images, at most a tenth of
            whose rows is padding. ``"packed"``: all tokens in one sequence without padding, attention by a nested
            tensor, which torch (2.5 or later) runs in one fused kernel on CUDA. ``"auto"``: groups on CPU, where they
            measured fastest; padded elsewhere, because nothing was measured there.

    Raises:
        ValueError: For another way.
        ImportError: For ``"packed"`` with an older torch.

    Example:
        >>> from tokengraph import MPM
        >>> from tokengraph.attach import attach
        >>> from tokengraph.testing import tiny_vit
        >>> model, images = tiny_vit(), torch.rand(3, 3, 32, 32)
        >>> with attach(model, MPM(layers=(1,))), ragged_batches("packed"), torch.inference_mode():
        ...     model(images).shape
        torch.Size([3, 5])
    """
    if way not in WAYS:
        raise ValueError(f"Expected way to be auto, padded, groups or packed (got {way!r}).")
    if way == "packed" and not has_jagged():
        raise ImportError(f"Expected torch >= 2.5 for packed images (got {torch.__version__}). Choose 'padded'.")
    before = _WAY.set(way)
    try:
        yield
    finally:
        _WAY.reset(before)


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


def run_ragged(
    run: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    bias: Any,
    layout: Layout,
    num_prefix: int,
    side: dict[str, Any],
    *,
    block: nn.Module,
    only_padding: bool = False,
) -> Tensor:
    """Runs part of a block, where images have different numbers of tokens as :func:`ragged_batches` says.

    Args:
        run: The part, which takes rows ``[b, P+n, C]`` and their bias.
        x: Rows of all images, ``[B, P+n, C]``; behind the tokens of an image is padding.
        bias: The bias on the attention's logits, ``[B, 1, 1, P+n]``, or ``None``.
        layout: How the patch tokens lie.
        num_prefix: P.
        side: The block's other inputs, which are rows of tokens or tables if any are tensors.
        block: The block. If it trains, its dropout of whole images would take a packed sequence for one image.
        only_padding: Whether the bias hides padding and says nothing else; known without a look at its values.

    Returns:
        ``[B, P+n, C]``; zeros at padding, unless the batch was padded.

    Cost: groups and packed: one copy of the rows, there and back.
    """
    if layout.counts is None or not _splits(x, bias, side):
        return run(x, bias)
    # A checkpoint computes a block again outside of the ``with``, so the choice must not change what it computes.
    chosen = "auto" if torch.is_grad_enabled() else _WAY.get()
    way = BEST.get(x.device.type, "padded") if chosen == "auto" else chosen
    counts = [num_prefix + count for count in layout.counts]
    if way == "packed" and any(part.training for part in block.modules()):
        way = "padded"
    if way == "padded" or len(set(counts)) == 1:
        return run(x, bias)
    if way == "packed":
        return _packed(run, x, None if only_padding else bias, counts)
    groups = groups_of(counts)
    if len(groups) == 1:
        return run(x, bias)
    out = x.new_zeros(x.shape)
    for group in groups:
        index, width = torch.tensor(group, device=x.device), counts[group[0]]
        if not width:  # images without any token come last
            continue
        own = None if bias is None else _keys(bias, lambda b, i=index, w=width: b.index_select(0, i)[..., :w])
        if own is not None and not bool(_numbers(own).any()):
            own = None  # no padding and no sizes: the attention needs no mask
        out[:, :width].index_copy_(0, index, run(x[:, :width].index_select(0, index), own))
    return out


def _packed(run: Callable[[Tensor, Any], Tensor], x: Tensor, bias: Any, counts: Sequence[int]) -> Tensor:
    """Runs a part on all tokens as one sequence."""
    rows, offsets = _places(str(x.device), x.size(1), *counts)
    own = None
    if bias is not None:
        own = _numbers(bias).float().flatten().index_select(0, rows).view(1, 1, 1, -1)
    mask = Jagged([count for count in counts if count], own, x.dtype, offsets)
    done = run(x.flatten(0, 1).index_select(0, rows)[None], mask)
    return x.new_zeros(x.shape).flatten(0, 1).index_copy(0, rows, done[0]).view(x.shape)


@table(8)
def _places(device: str, width: int, *counts: int) -> tuple[Tensor, Tensor]:
    """Returns the rows of tokens among padded ones, ``[T]``, and where each image that has tokens begins among them."""
    rows = [image * width + place for image, count in enumerate(counts) for place in range(count)]
    starts = [0, *accumulate(count for count in counts if count)]
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device)


def _splits(x: Tensor, bias: Any, side: dict[str, Any]) -> bool:
    """Returns whether rows and bias can be taken apart by images."""
    if not may_write(x) or any(isinstance(value, Tensor | tuple) for value in side.values()):
        return False
    numbers = _numbers(bias)
    return bias is None or (isinstance(numbers, Tensor) and numbers.shape[:3] == (x.size(0), 1, 1))


def _numbers(bias: Any) -> Any:
    """The numbers of a bias of either kind."""
    return bias.bias if isinstance(bias, SizeBias) else bias


def _keys(bias: Any, take: Callable[[Tensor], Tensor]) -> Any:
    """Takes keys out of a bias of either kind."""
    return SizeBias(take(bias.bias), bias.dtype) if isinstance(bias, SizeBias) else take(bias)
