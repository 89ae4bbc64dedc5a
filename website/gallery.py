"""The gallery page: the pictures that ``benchmarks/gallery.py`` made, by strategy."""

from __future__ import annotations

import tokengraph as tg
from website.measured import ROOT
from website.names import strategies
from website.strategies import training

FOLDER = ROOT / "docs" / "gallery"


def every() -> str:
    """Returns a section for each strategy, with its picture or the reason why it has none."""
    parts = []
    for name, kind in strategies().items():
        parts.append(f"## [{kind.__name__}](../strategies/{name}.md)")
        parts.append(
            f"![{name}](../gallery/{name}.webp)"
            if picture(name)
            else why_not(name) or "No picture yet: `make gallery`."
        )
    return "\n\n".join(parts)


def picture(name: str) -> bool:
    """Returns whether the strategy has a picture."""
    return (FOLDER / f"{name}.webp").exists()


def why_not(name: str) -> str:
    """Returns why the strategy has no picture by its nature, or nothing."""
    select = tg.resolve(name)
    if training(type(select), select.learns):
        return "No picture: it has to be trained first."
    return "No picture: all tokens return, so no patches share one in the end." if select.placement == "around" else ""
