"""Tables that follow from a few numbers alone, built once for each and shared: window graphs, grids, band plans."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


def table(maxsize: int = 64) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Caches a function of plain numbers and strings that returns tensors, which nobody may write into.

    The tables are ordinary tensors whatever is going on around the first call: inference mode would make them useless
    for training, and the fake tensors of ``torch.export`` must not stay in a cache. To ``torch.compile`` they are
    constants.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        cached = lru_cache(maxsize)(build)

        @torch.compiler.assume_constant_result
        def constant(*key: Any) -> Any:
            with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
                return cached(*key)

        @wraps(build)
        def look_up(*key: Any) -> Any:
            # index() makes plain ints of what torch.compile holds as symbols when sizes change.
            return constant(*[k if isinstance(k, str) else operator.index(k) for k in key])

        return look_up

    return decorate
