"""A checksum of the library's code that figures depend on; docstrings and comments do not change it."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import tokengraph

LIBRARY = Path(tokengraph.__file__).parent
PARTS = ("adapters", "attach", "attention", "edges", "flat", "maps", "nn", "select", "evaluate", "schedule.py")


def without_words(text: str) -> str:
    """Returns Python code as a tree without docstrings, comments and layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@cache
def digest(library: Path = LIBRARY) -> str:
    """Returns 12 hexadecimal digits of the library's parts that choose, merge, run and measure."""
    total = hashlib.sha256()
    for part in PARTS:
        files = [library / part] if part.endswith(".py") else sorted((library / part).rglob("*.py"))
        for file in (f for f in files if f.exists()):
            total.update(file.relative_to(library).as_posix().encode())
            total.update(without_words(file.read_text(encoding="utf-8")).encode())
    return total.hexdigest()[:12]
