"""Tables that follow from a few numbers alone, built once for each and shared: window graphs, grids, band plans."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def table(maxsize: int = 64) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Caches a function of plain numbers and strings that returns tensors, which nobody may write into.

    The tables are ordinary tensors, made on the CPU, whatever is going on around the first call: inference mode would
    make them useless for training, and neither the fake tensors of ``torch.export`` nor those of a default device may
    stay in a cache. To ``torch.compile`` they are constants.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        cached = lru_cache(maxsize)(build)

        @torch.compiler.assume_constant_result
        def constant(*key: Any) -> Any:
            with _disable_current_modes(), torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
                return cached(*key)

        # torch.compile tells constants apart by the code name of the function that gives them.
        name = f"{build.__module__}.{build.__qualname__}".replace(".", "_")
        constant.__code__ = constant.__code__.replace(co_name=name)

        @wraps(build)
        def look_up(*key: Any) -> Any:
            # index() makes plain ints of what torch.compile holds as symbols when sizes change.
            return constant(*[k if isinstance(k, str) else operator.index(k) for k in key])

        look_up.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
        return look_up

    return decorate


def equal_ptr(images: int, each: int, device: torch.device | str) -> Tensor:
    """``[B+1]`` int64: where each of B images begins when all have ``each`` rows."""
    if torch.compiler.is_compiling():  # a constant would pin the batch
        return torch.arange(images + 1, device=device) * each
    return _equal_ptr(images, each, str(device))


@table(256)
def _equal_ptr(images: int, each: int, device: str) -> Tensor:
    return torch.arange(images + 1, device=device) * each
