"""The attention of a vision tower, for strategies that read it before the language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tokengraph.attention.stats import AttentionStats
from tokengraph.select.base import Select


class Watched:
    """x."""

    def attention(self, rows: Tensor, total: int) -> AttentionStats:
        raise NotImplementedError


@contextmanager
def watch(base: Any, select: Select) -> Iterator[Watched | None]:
    """x."""
    yield None
