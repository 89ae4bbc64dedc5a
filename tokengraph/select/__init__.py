"""The strategies, one file a method. Every file here is imported, so a new strategy needs no other registration.

These files are machinery, and all others (and the folders but ``parts``) are methods or wrap methods:

| question | files |
|---|---|
| What is a strategy? | base (``Select``, registry), tokens (its input), flags (older attributes) |
| What may it follow through a run, or decide in training? | watch, decided |
| Which layers have it act? | layers (its own schedule), threshold (its own threshold), gated (gates in each block) |
| How do batches of several shapes run? | each_image, one_image, rounds (tiles) |
| How are strategies put together? | pieces (of ``compose``), staged (one after another in depth) |
"""

import importlib
import pkgutil

from tokengraph.select.base import Select, registry, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Select", "registry", "resolve"]
