"""Optional packages, imported when first needed; where one is missing the error names the extra that brings it."""

from __future__ import annotations

import importlib
from typing import Any

PACKAGES = {"matplotlib": ("matplotlib", "viz"), "PIL": ("Pillow", "viz"), "rich": ("rich", "cli")}


def optional(module: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: For example ``"rich.table"``; its package is one of ``PACKAGES``.

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
