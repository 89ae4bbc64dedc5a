"""How the tokens of a batch lie in memory: flat rows, padded rows with a mask, and the way between them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokengraph.flat.looks import may_write
from tokengraph.flat.tables import counting, starts


@dataclass(eq=False)
class Layout:
    """How the tokens of a batch lie: as rows ``[B, n, ...]``, behind which images with fewer tokens are padded.

    Args:
        images: B.
        width: n, tokens an image; the most of any, where images differ.
        counts: Tokens of each image, where they differ; ``None``: all have ``width``.
        valid: ``[B, n]`` bool, True where there is a token; with ``counts``. ``None``: everywhere.
    """

    images: int
    width: int
    counts: tuple[int, ...] | None = None
    valid: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, images: int, total: int, counts: tuple[int, ...] | None, device: torch.device) -> Layout:
        """The layout of ``total`` flat tokens, an equal share for each image, or ``counts`` with padding behind."""
        if counts is None:
            return cls(images, total // images)
        width = max(counts)
        count = torch.tensor(counts, device=device, dtype=torch.long)
        return cls(images, width, counts, torch.arange(width, device=device) < count[:, None])

    @property
    def each(self) -> tuple[int, ...]:
        """Tokens of each image."""
        return (self.width,) * self.images if self.counts is None else self.counts

    def pairs(self, numbers: int | list[int]) -> Iterable[tuple[int, int]]:
        """A number for each image beside its tokens; once where all are alike."""
        if self.counts is None and not isinstance(numbers, list):
            return ((numbers, self.width),)
        each = self.each
        return zip(numbers if isinstance(numbers, list) else [numbers] * len(each), each, strict=True)

    def flat(self, rows: Tensor) -> Tensor:
        """Rows ``[B, n, ...]`` as flat tokens ``[M, ...]``, without padding."""
        return rows.flatten(0, 1) if self.valid is None else rows[self.valid]

    def padded(self, rows: Tensor) -> Tensor:
        """Flat tokens ``[M, ...]`` as rows ``[B, n, ...]``, zeros at padding: the inverse of :meth:`flat`."""
        if self.valid is not None:
            return spread(rows, self.valid)
        return rows.reshape(self.images, self.width, *rows.shape[1:])

    def with_prefix(self, num_prefix: int) -> Layout:
        """The layout of whole sequences, with ``num_prefix`` tokens in front of each image."""
        if num_prefix == 0:
            return self
        valid = self.valid
        if valid is not None:
            valid = torch.cat([valid.new_ones(self.images, num_prefix), valid], dim=1)
        counts = None if self.counts is None else tuple(count + num_prefix for count in self.counts)
        return Layout(self.images, num_prefix + self.width, counts, valid)


def pad(x: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Pads flat rows ``[M, ...]`` to ``[B, N, ...]`` with zeros at the end, N = ``max(counts)``.

    Also returns the mask ``[B, N]`` bool, True at real rows.
    """
    count = torch.tensor(counts, device=x.device, dtype=torch.long)
    mask = torch.arange(max(counts, default=0), device=x.device) < count[:, None]
    dense = x.new_zeros(*mask.shape, *x.shape[1:])
    dense[mask] = x
    return dense, mask


def spread(rows: Tensor, valid: Tensor) -> Tensor:
    """Flat rows ``[M, ...]`` laid out where ``valid [B, n]`` is True, zeros elsewhere: ``[B, n, ...]``.

    Cost: one copy. On CPU whole rows are copied, in half the time that ``masked_scatter`` takes; on CUDA
    ``masked_scatter`` spares a host synchronisation.
    """
    if rows.device.type == "cpu" and rows.dim() > 1 and not torch.compiler.is_compiling():
        out = rows.new_zeros(*valid.shape, *rows.shape[1:])
        out[valid] = rows
        return out
    return rows.new_zeros(*valid.shape, *rows.shape[1:]).masked_scatter(
        valid.view(*valid.shape, *[1] * (rows.dim() - 1)), rows
    )


def flat_ids(index: Tensor, tokens: int, mask: Tensor | None, counts: Tensor | None) -> Tensor:
    """Turns token numbers within each image ``[B, K]`` into flat ids ``[sum K_b]``.

    Flat ids count the True tokens of ``mask [B, N]``, or all ``tokens`` of each image if ``mask`` is ``None``.
    ``counts [B]`` says how many of the K numbers of each row to use; ``None``: all.
    """
    images, width = index.shape
    ids = counting(images * tokens, index.device) if mask is None else mask.flatten().cumsum(0) - 1
    flat = ids.view(images, tokens).gather(1, index)
    if counts is not None:
        flat = flat[torch.arange(width, device=index.device) < counts[:, None]]
    return flat.flatten()


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``x[b, index[b]]``: ``[B, n, C]`` and ``[B, k]`` to ``[B, k, C]``; on flat rows, much faster than gather.

    Cost: one copy of the taken rows; on eager CPU, rows behind prefix tokens are read where they lie.
    """
    images, count = x.shape[:2]
    if x.device.type == "cpu" and not x.is_contiguous() and may_write(x):
        return x[counting(images, x.device)[:, None], index]  # flat rows would be a copy of all
    return (
        x.flatten(0, 1)
        .index_select(0, (index + starts(images, count, x.device)).flatten())
        .view(images, index.size(1), *x.shape[2:])
    )
