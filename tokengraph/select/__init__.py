"""The strategies, one file a method. Every file here is imported, so a new strategy needs no other registration."""

import importlib
import pkgutil

from tokengraph.select.base import Select, registry, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Select", "registry", "resolve"]
