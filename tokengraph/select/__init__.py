"""The strategies, one file a method. Every file here is imported, so a new strategy needs no other registration.

These files are machinery. All others, and the folders except ``parts``, are methods, or make a strategy of other parts
(compose, around, from_matrix, from_pyg); gated has SViT, AdaViT and their base class.

| question | files |
|---|---|
| What is a strategy? | base (``Select``, registry), tokens (its input), flags (older attributes) |
| What may it follow through a run, or decide in training? | watch, decided |
| Which layers have it act? | layers (its own schedule), threshold (its own threshold) |
| How do batches of several shapes run? | each_image, one_image, rounds (tiles) |
| How are strategies put together? | pieces (of ``compose``), staged (one after another in depth) |
"""

import importlib
import pkgutil

from tokengraph.select.base import Select, registry, resolve

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Select", "registry", "resolve"]
