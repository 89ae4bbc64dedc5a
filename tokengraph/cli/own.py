"""Imports a user's own strategies and adapters, for ``--import``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def import_own(names: Sequence[str]) -> None:
    """Imports Python files (``mine.py``) or modules (``package.module``), which register what they define.

    Raises:
        ValueError: If one is not there, or raises; the message names the error.
    """
    for name in names:
        try:
            _import_file(Path(name)) if name.endswith(".py") else _import_module(name)
        except Exception as error:
            told = str(error).splitlines()[0] if str(error) else ""
            raise ValueError(
                f"Expected a Python file or module that can be imported (got {name!r}: {type(error).__name__}: {told})."
            ) from error


def _import_file(file: Path) -> None:
    """Runs a file as the module of its name, once; it finds the files beside it.

    Raises:
        ImportError: If another module has this name.
    """
    file = file.resolve()
    if not file.is_file():
        raise FileNotFoundError("no such file")
    known = sys.modules.get(file.stem)
    other = getattr(known, "__file__", None) if known is not None else getattr(find_spec(file.stem), "origin", None)
    if (known is not None or other is not None) and Path(other or "").resolve() != file:
        raise ImportError(f"another module is called {file.stem}; rename the file")
    if known is not None:
        return
    spec = spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[file.stem] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise


def _import_module(name: str) -> None:
    """Imports a module, also from the folder in which the command runs."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    import_module(name)
