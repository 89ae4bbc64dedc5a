"""How to choose: one file a method. All files here are imported, so that a new one registers by being here."""

import importlib
import pkgutil

from tokengraph.select.base import Select, registry, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Select", "registry", "resolve"]
