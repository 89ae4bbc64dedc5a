"""Tables of model families and versions, from the adapters and from pyproject.toml."""

from __future__ import annotations

import inspect
import re

from tokengraph.adapters import ADAPTERS
from website.measured import ROOT
from website.text import to_markdown


def families() -> str:
    """Returns a table of the families that ``attach`` finds by itself."""
    rows = ["| family | adapter | about |", "|---|---|---|"]
    for adapter in ADAPTERS:
        about = to_markdown((inspect.getdoc(adapter) or "").split("\n\n")[0].replace("\n", " "))
        rows.append(f"| {adapter.family} | `{type(adapter).__name__}` | {about} |")
    return "\n".join(rows)


def versions() -> str:
    """Returns a table of the oldest supported versions, and of the tested ones."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    tested = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    )
    names = (
        "torch",
        "torch-geometric",
        "numpy",
        "timm",
        "transformers",
        "open_clip_torch",
        "torchvision",
        "onnxruntime",
    )
    rows = ["| package | at least | tested with |", "|---|---|---|"]
    for name in names:
        least = re.search(rf'"{re.escape(name)}>=([\w.]+)', project)
        rows.append(f"| {name} | {least[1] if least else 'that of torch'} | {tested.get(name, '–')} |")
    return "\n".join(rows)
