"""Results as JSON lines, one row a line; writes are atomic and replace single rows."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tokengraph import __version__
from tokengraph.evaluate.report import Row

PACKAGES = ("torch", "torch-geometric", "numpy", "timm", "pillow", "scikit-image", "scikit-learn", "onnx")
Line = dict[str, Any]


def read(file: Path) -> list[Line]:
    """Returns the rows of a file, without a truncated last line; none if there is no file."""
    if not file.exists():
        return []
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def write(file: Path, lines: Iterable[Line]) -> None:
    """Writes all rows, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text("".join(json.dumps(_plain(line), sort_keys=True) + "\n" for line in lines), encoding="utf-8")
    part.replace(file)


def merged(old: Iterable[Line], new: Iterable[Line]) -> list[Line]:
    """Replaces old rows by new ones with the same model, group, images and setting."""
    rows = {}
    for line in [*old, *new]:
        rows[line["model"], line["group"], line["images"], line["setting"]] = line
    return list(rows.values())


def line_of(row: Row, about: Mapping[str, Any]) -> Line:
    """A report's row as a line.

    Args:
        row: Of :func:`tokengraph.evaluate`'s report.
        about: Further fields: model, group of the table, images, family of schedules, commit.
    """
    found = {key: value for key, value in asdict(row).items() if value not in (None, "", {}, ())}
    found["setting"] = found.pop("name")
    return {**about, **found}


def _plain(value: Any) -> Any:
    """Rounded to six places, and ``null`` for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


def commit(folder: Path) -> str:
    """Returns the commit of a folder, with ``+`` if the library's files differ from it; empty outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        changed = git("status", "--porcelain", "--", "tokengraph", "benchmarks/truth")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Of the packages that figures depend on, and of Python."""
    found = {"tokengraph": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
