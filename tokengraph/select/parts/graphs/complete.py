"""The complete graph of an image: all pairwise distances, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokengraph.edges.distance import mend_close, recentre, squared_distance, squared_norm
from tokengraph.flat.looks import may_look
from tokengraph.flat.memory import rows_within
from tokengraph.flat.segment import as_type, wide


class Distances:
    """Squared distances of all pairs in blocks of rows; a single block is cached, several are recomputed on each pass.

    They are not divided by C, so that integers stay exact and ties hold. If matrix products lose digits, eager CPU
    runs subtract instead. CUDA and compiled runs always use products, because a check would wait for the device.
    """

    def __init__(self, x: Tensor, mask: Tensor | None) -> None:
        self.source = as_type(x, wide(x))
        self.x = recentre(x, mask)
        self.mask, self.norm = mask, squared_norm(self.x)
        self.mend = may_look(x)
        x = self.x
        images, self.tokens = x.shape[:2]
        self.step = rows_within(images, self.tokens, self.tokens, x.element_size())
        self._whole: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the first row of each block, and the block ``[B, rows, N]``."""
        for start in range(0, self.tokens, self.step):
            if self._whole is not None:
                yield start, self._whole
                continue
            rows = slice(start, start + self.step)
            block = squared_distance(self.x[:, rows], self.x, self.norm[:, rows], self.norm)
            if self.mend:
                mend_close(block, self.source, self.norm, start)  # also sets the diagonal to 0
            else:
                own = torch.arange(block.size(1), device=block.device)
                block[:, own, own + start] = 0.0
            if self.mask is not None:
                block = block.masked_fill(~self.mask[:, None, :], torch.inf)
            if self.step >= self.tokens:
                self._whole = block
            yield start, block

    def rows(self, tokens: Tensor) -> Tensor:
        """Returns the rows of tokens ``[B, K]`` as ``[B, K, N]``, from the cache if there is one."""
        if self._whole is not None:
            return self._whole.gather(1, tokens[..., None].expand(-1, -1, self.tokens))
        a = self.x.gather(1, tokens[..., None].expand(-1, -1, self.x.size(2)))
        block = squared_distance(a, self.x, self.norm.gather(1, tokens), self.norm)
        return mend_close(block, self.source, self.norm, rows=tokens) if self.mend else block
