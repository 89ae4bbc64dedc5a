"""The gallery page: the pictures that ``benchmarks/gallery.py`` made, by strategy."""

from __future__ import annotations

from website.measured import ROOT
from website.names import strategies

FOLDER = ROOT / "docs" / "gallery"


def every() -> str:
    """Returns a section for each strategy, with its picture or the reason why it has none."""
    parts = []
    for name, kind in strategies().items():
        parts.append(f"## [{kind.__name__}](../strategies/{name}.md)")
        parts.append(
            f"![{name}](../gallery/{name}.webp)"
            if picture(name)
            else MISSING.get(name, "No picture yet: `make gallery`.")
        )
    return "\n\n".join(parts)


def picture(name: str) -> bool:
    """Returns whether the strategy has a picture."""
    return (FOLDER / f"{name}.webp").exists()


MISSING = {
    "around": "All tokens return after each module, so no patches share one in the end.",
    "dynamicvit": "It has to be trained first: untrained predictors choose at random.",
    "dtem": "It has to be trained first: an untrained metric merges at random.",
}
