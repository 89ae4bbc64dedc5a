"""A cache for tables that depend on a few numbers alone, such as window graphs and grids."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def table(maxsize: int = 64) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Caches a function of plain numbers and strings that returns tensors. Callers must not write into the tensors.

    The first call builds ordinary tensors on the CPU, even if it runs in inference mode (whose tensors cannot be used
    in training), under ``torch.export`` (whose tensors are fake) or with another default device. ``torch.compile``
    treats the tensors as constants.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        """Returns ``build`` with a cache."""
        cached = lru_cache(maxsize)(build)

        @torch.compiler.assume_constant_result
        def constant(*key: Any) -> Any:
            with _disable_current_modes(), torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
                return cached(*key)

        # torch.compile tells constants apart by the code name of the function that returns them.
        name = f"{build.__module__}.{build.__qualname__}".replace(".", "_")
        constant.__code__ = constant.__code__.replace(co_name=name)

        made: dict[tuple[Any, ...], Any] = {}  # found without entering four contexts, which take 10 us

        @wraps(build)
        def look_up(*key: Any) -> Any:
            """Returns the cached table, or builds it."""
            if torch.compiler.is_compiling():
                # index() turns the symbolic sizes of torch.compile into plain ints.
                return constant(*[k if isinstance(k, str) else operator.index(k) for k in key])
            found = made.get(key)
            if found is None:
                if len(made) >= maxsize:
                    made.clear()
                found = made[key] = constant(*[k if isinstance(k, str) else operator.index(k) for k in key])
            return found

        def cache_clear() -> None:
            cached.cache_clear()
            made.clear()

        look_up.cache_clear = cache_clear  # type: ignore[attr-defined]
        return look_up

    return decorate


def equal_ptr(images: int, each: int, device: torch.device | str) -> Tensor:
    """Returns ``ptr [B+1]`` int64: the first row of each of B images that all have ``each`` rows."""
    if torch.compiler.is_compiling():  # a constant would pin the batch
        return torch.arange(images + 1, device=device) * each
    return _equal_ptr(images, each, str(device))


@table(512)
def _equal_ptr(images: int, each: int, device: str) -> Tensor:
    return torch.arange(images + 1, device=device) * each


def counting(count: int, device: torch.device | str) -> Tensor:
    """Returns ``0, 1, ..., count - 1``, ``[count]`` int64, from a cache. Callers must not write into it."""
    if torch.compiler.is_compiling():
        return torch.arange(count, device=device)
    return _counting(count, str(device))


@table(512)
def _counting(count: int, device: str) -> Tensor:
    return torch.arange(count, device=device)


def ones(count: int, device: torch.device | str) -> Tensor:
    """Returns ``[count]`` float32 ones, from a cache. Callers must not write into it."""
    if torch.compiler.is_compiling():
        return torch.ones(count, dtype=torch.float32, device=device)
    return _ones(count, str(device))


@table(256)
def _ones(count: int, device: str) -> Tensor:
    return torch.ones(count, dtype=torch.float32, device=device)


def zeros(rows: int, columns: int, device: torch.device | str, dtype: torch.dtype = torch.long) -> Tensor:
    """Returns zeros ``[rows, columns]``, int64 or bool, from a cache. Callers must not write into them."""
    if torch.compiler.is_compiling():
        return torch.zeros(rows, columns, dtype=dtype, device=device)
    return _zeros(rows, columns, int(dtype == torch.bool), str(device))


@table(256)
def _zeros(rows: int, columns: int, truth: int, device: str) -> Tensor:
    return torch.zeros(rows, columns, dtype=torch.bool if truth else torch.long, device=device)


def starts(images: int, each: int, device: torch.device | str) -> Tensor:
    """Returns the first row of each of B images of ``each`` rows, ``[B, 1]`` int64. Callers must not write into it."""
    return equal_ptr(images, each, device)[:-1, None]
