"""Imports torchvision, and so timm and transformers, beside a CPU-only torch.

PyPI's torchvision is built for CUDA. Beside a torch without CUDA its compiled operators do not load, and the import
ends in ``operator torchvision::nms does not exist``: the package describes two operators that were never defined.
Their schemas alone cure it. The operators themselves stay unusable, and torchvision says so when one is called.

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
_library: torch.library.Library | None = None  # its schemas vanish when it is collected


def ensure_torchvision() -> ModuleType:
    """Imports torchvision, defining the operator schemas that its import misses if need be.

    Where torchvision imports by itself nothing is changed. Calling it again is free.

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
    """Imports timm alone; as an attribute of this module it also knows this library's models."""
    ensure_torchvision()
    return _import_optional("timm")


def _define_schemas() -> None:
    """Defines ``torchvision::nms`` and ``torchvision::qnms``, unless something already did."""
    global _library
    if _library is None:
        # FRAGMENT: unlike DEF it does not fail where other code has defined operators of this namespace.
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
    """Imports ``package``; where it is not installed, says which extra has it."""
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
    """Gives ``timm``, ``torchvision`` and ``transformers`` as attributes, imported at first use."""
    if name == "torchvision":
        return ensure_torchvision()
    if name == "timm":
        timm = import_timm()
        importlib.import_module("tokengraph.models").register_with_timm()  # timm.create_model("fast_itpn_tiny")
        return timm
    if name == "transformers":
        if importlib.util.find_spec("torchvision") is not None:  # which it imports by and by, where it is installed
            ensure_torchvision()
        return _import_optional("transformers")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
