"""Imports torchvision, and with it timm and transformers, next to a CPU-only torch.

PyPI's torchvision is built for CUDA. With a torch without CUDA its compiled operators do not load, and the import
fails with ``operator torchvision::nms does not exist``, because it registers functions for two undefined operators.
This module defines their schemas, so the import works. The operators stay unusable, and raise when they are called.

.. code-block:: python

    from tokengraph.compat import timm  # instead of `import timm`

Importing this module imports no optional package.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType
from typing import Any

import torch

_MISSING_OPERATOR = re.compile(r"operator torchvision::\w+ does not exist")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None  # its schemas are removed when it is garbage-collected


def ensure_torchvision() -> ModuleType:
    """Imports torchvision; defines the operator schemas that its import needs, if they are missing.

    If torchvision imports by itself, nothing changes. Further calls cost nothing.

    Returns:
        The module ``torchvision``.

    Raises:
        ImportError: If torchvision is not installed; names the extra to install.
    """
    try:
        return _import_optional("torchvision")
    except RuntimeError as error:
        if not _MISSING_OPERATOR.search(str(error)):
            raise
    _forget("torchvision")  # the failed import leaves submodules behind
    _define_schemas()
    return _import_optional("torchvision")


def import_timm() -> ModuleType:
    """Imports timm without registering this library's models; the attribute ``timm`` of this module registers them."""
    ensure_torchvision()
    return _import_optional("timm")


def _define_schemas() -> None:
    """Defines ``torchvision::nms`` and ``torchvision::qnms``, unless they exist."""
    global _library
    if _library is None:
        # FRAGMENT, unlike DEF, does not fail if other code has defined operators of this namespace.
        _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _library.define(name + _SIGNATURE)


def _forget(package: str) -> None:
    """Removes a package and its submodules from ``sys.modules``."""
    for name in list(sys.modules):
        if name == package or name.startswith(package + "."):
            del sys.modules[name]


def _import_optional(package: str) -> ModuleType:
    """Imports ``package``; if it is not installed, the error names the extra."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # installed, but something that it needs is not: its own message is better
            raise
        raise ImportError(
            f"Expected {package} to be installed (got no such package). "
            f"Install it with: pip install 'tokengraph[{'transformers' if package == 'transformers' else 'timm'}]'",
            name=package,
        ) from error


def __getattr__(name: str) -> Any:
    """Imports ``timm``, ``torchvision`` or ``transformers`` when the attribute is first used."""
    if name == "torchvision":
        return ensure_torchvision()
    if name == "timm":
        timm = import_timm()
        importlib.import_module("tokengraph.models").register_with_timm()  # timm.create_model("fast_itpn_tiny")
        return timm
    if name == "transformers":
        if importlib.util.find_spec("torchvision") is not None:  # transformers imports it later
            ensure_torchvision()
        return _import_optional("transformers")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
