"""Reads checkpoint files without running code from them, and explains why a file cannot be read."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
import torch

from tokengraph.optional import optional

LFS = b"version https://git-lfs"
HARMLESS: list[Any] = [  # types that training scripts store beside weights; loading them runs no code of the file
    *(argparse.Namespace, types.SimpleNamespace, collections.deque, collections.defaultdict),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(int, float, bool, str, complex, list, dict, set, frozenset, slice, range),
    *(np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes["All"]}),
]
PATHS = [pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath]


def read_checkpoint(path: str | PathLike[str], weights_only: bool = True) -> Any:
    """Returns the content of a file by ``torch.save`` or safetensors, with tensors on the CPU.

    Args:
        path: The file.
        weights_only: Load only tensors and harmless types (``argparse.Namespace``, NumPy's numbers, paths, dates). If
            False, the file may run any code.

    Raises:
        ValueError: If there is no file, it is truncated or a git-lfs pointer, or it needs ``weights_only=False``.
        ImportError: If the file is in safetensors format and that package is not installed.

    Cost: one read of the file.
    """
    name = repr(str(path))
    head = _head(path, name)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 10**9:
        load = optional("safetensors.torch").load_file
        try:
            return load(path)
        except Exception as error:  # older versions of safetensors lack its own error class
            raise ValueError(
                f"Expected a whole file of safetensors (got {name}: {error}). Download it anew."
            ) from error
    try:
        with _harmless():
            return torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # a file may raise anything
        raise ValueError(_why(path, name, error, weights_only)) from error


def _head(path: str | PathLike[str], name: str) -> bytes:
    """Returns the first bytes of a file; raises if it cannot be a checkpoint."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise ValueError(f"Expected the path of a checkpoint (got {name}: no such file).") from error
    except IsADirectoryError as error:
        raise ValueError(f"Expected the path of a checkpoint (got {name}: a folder). Name a file in it.") from error
    except (OSError, ValueError) as error:  # no permission, a name too long, a NUL in it
        raise ValueError(f"Expected the path of a checkpoint (got {name}: {error}).") from error
    if not head:
        raise ValueError(f"Expected a checkpoint (got {name}: an empty file). Download it anew.")
    if head.startswith(LFS):
        raise ValueError(f"Expected a checkpoint (got {name}: a git-lfs pointer, not the file). Run: git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise ValueError(f"Expected a checkpoint (got {name}: a page of HTML or XML). Download the file itself.")
    return head


@contextmanager
def _harmless() -> Iterator[None]:
    """Allows ``torch.load`` to load harmless types inside the context."""
    serialization: Any = torch.serialization
    allowed = [*HARMLESS, *PATHS, *_functions()]
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6):  # these versions accept types under old names
        renamed = [(thing, f"{module}.{thing.__name__}") for thing in PATHS for module in ("pathlib", "pathlib._local")]
        modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
        renamed += [(thing, f"{module}.{thing.__name__}") for thing in _functions() for module in modules]
        allowed += renamed
    before = serialization.get_safe_globals()
    serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _functions() -> list[Any]:
    """Returns the functions that rebuild NumPy's scalars and arrays, found by pickling: versions move them."""
    return [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]


def _why(path: str | PathLike[str], name: str, error: Exception, weights_only: bool) -> str:
    """Returns the error message for a file that torch cannot load."""
    text = str(error)
    trust = "If you trust it: load_checkpoint(model, path, weights_only=False)."
    if weights_only and "TorchScript" in text:
        return f"Expected a checkpoint of tensors (got {name}: a model of TorchScript). {trust}"
    if weights_only and isinstance(error, pickle.UnpicklingError):
        unknown = re.search(r"(?:GLOBAL|global|class) ([\w.]+\.\w+)", text)
        if unknown is not None:
            return (
                f"Expected a checkpoint of tensors (got {name}, which holds a {unknown[1]}: a whole pickled model, or "
                f"a script's own class). {trust} Or save its state_dict() where it was made."
            )
    if isinstance(error, ImportError | AttributeError):  # with weights_only=False: the code of a pickled class
        return f"Expected a checkpoint whose classes can be imported (got {name}: {text}). Install their code first."
    reason = text.splitlines()[0].rstrip(".") if text else type(error).__name__
    return f"Expected a whole file of torch.save or safetensors (got {name}: {reason}). Download it anew."
