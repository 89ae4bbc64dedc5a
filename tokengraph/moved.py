"""Redirects imports of module names from version 0.1, as in old pickles, to the modules' new names."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "tokengraph.assignment": "tokengraph.maps.hard",
    "tokengraph.checkpoints": "tokengraph.io.checkpoints",
    "tokengraph.onnx_export": "tokengraph.io.onnx",
    "tokengraph.photo": "tokengraph.io.photo",
    "tokengraph.soft": "tokengraph.maps.soft",
}


class _Moved(MetaPathFinder, Loader):
    """Finds modules by their old names; imports each one on its first use."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warnings.warn(f"{old} has moved to {MOVED[old]}. Import it from there.", DeprecationWarning, stacklevel=2)
        sys.modules[old] = import_module(MOVED[old])  # the import system returns this entry


def find_moved_modules() -> None:
    """Lets imports of old module names find the new modules, with a DeprecationWarning."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
