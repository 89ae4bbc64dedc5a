"""Optional packages: Python extras and compiled extensions. They load lazily, so a broken one breaks no import."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

PACKAGES = {
    "argcomplete": ("argcomplete", "complete"),
    "datasets": ("datasets", "eval"),
    "matplotlib": ("matplotlib", "viz"),
    "open_clip": ("open_clip_torch", "eval"),
    "PIL": ("Pillow", "viz"),
    "rich": ("rich", "cli"),
    "rocksdict": ("rocksdict", "rocksdb"),
    "safetensors": ("safetensors", "timm"),
    "tqdm": ("tqdm", "eval"),
}


def optional(module: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: For example ``"rich.table"``; its package is one of ``PACKAGES``.

    Returns:
        The module.

    Raises:
        ImportError: If the package is not installed; names the extra to install.
    """
    top = module.split(".")[0]
    package, extra = PACKAGES[top]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != top:  # installed, but something in it or under it is not: its own message is better
            raise
        raise ImportError(
            f"Expected {package} to be installed (got no such package). "
            f"Install it with: pip install 'tokengraph[{extra}]'",
            name=top,
        ) from error


_MODULES = {"torch-cluster": "torch_cluster", "torch-scatter": "torch_scatter", "pyg-lib": "pyg_lib"}
_INSTALL = {
    "torch-cluster": "pip install --no-build-isolation 'tokengraph[cluster]' (after torch)",
    "torch-scatter": "pip install --no-build-isolation 'tokengraph[cluster]' (after torch)",
    "pyg-lib": "pip install pyg-lib -f https://data.pyg.org/whl/torch-<version>+<cpu|cuXXX>.html (not on PyPI)",
}


@dataclass(frozen=True)
class Backend:
    """One backend: whether it can be used, its version, and the reason if it is unusable or limited."""

    name: str
    available: bool
    version: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        state = f"yes, {self.version}" if self.available else "no"
        return f"{self.name}: {state}" + (f" ({self.reason})" if self.reason else "")


@cache
def _probe(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(_MODULES[name]), ""
    except ModuleNotFoundError as error:
        if error.name == _MODULES[name]:
            return None, f"not installed: {_INSTALL[name]}"
        return None, f"broken: {error}"
    except Exception as error:  # an extension built for another torch raises OSError; a broken one may raise anything
        return None, f"broken: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def load(name: str) -> ModuleType | None:
    """Returns the module of a backend, or ``None`` if it is missing or broken."""
    return _probe(name)[0]


def require(name: str) -> ModuleType:
    """Returns the module of a backend.

    Raises:
        ImportError: If it is missing or broken; the message says why, and how to install it.
    """
    module, reason = _probe(name)
    if module is None:
        raise ImportError(f"Expected {name} to be usable (got {reason}).")
    return module


def backends() -> dict[str, Backend]:
    """Reports which backends are usable, and why others are not.

    Returns:
        ``"torch"``, ``"torch-cluster"``, ``"torch-scatter"`` and ``"pyg-lib"``, each with ``available``, ``version``
        and ``reason``.

    Example:
        >>> backends()["torch"].available
        True
    """
    import torch

    found = {"torch": Backend("torch", True, torch.__version__)}
    for name in _MODULES:
        module, reason = _probe(name)
        found[name] = Backend(name, module is not None, getattr(module, "__version__", None), reason)
    return found
