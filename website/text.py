"""Docstrings as Markdown: roles become code or links, formulas become MathML, which browsers draw without a script."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache
from typing import Any

ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|attr|data|exc|obj):`([^`]+)`")
MATH = re.compile(r":math:`([^`]+)`")
DISPLAY = re.compile(r"^( *)\.\. math::[ ]*(.*)\n((?:(?:\1[ ]+.*)?\n)*)", flags=re.M)
SECTIONS = ("Args", "Returns", "Raises", "Cost", "Example", "Ties", "Source", "Attributes", "Yields", "Differs")
HEAD = re.compile(rf"^({'|'.join(SECTIONS)}):", flags=re.M)
Link = Callable[[str, str], str]


def to_markdown(docstring: str, link: Link | None = None) -> str:
    """Returns the text with roles and formulas replaced.

    Args:
        docstring: Cleaned of its indentation, as ``inspect.getdoc`` returns it.
        link: Makes a link of the words to show and the dotted name; ``None``: words in code type.
    """
    docstring = DISPLAY.sub(lambda m: f"{m[1]}{mathml(m[2] + ' ' + m[3], block=True)}\n\n", docstring + "\n")
    docstring = MATH.sub(lambda m: mathml(m[1]), docstring)
    return ROLE.sub(lambda m: _shown(m[1], link), docstring).rstrip()


def paragraphs(docstring: str) -> dict[str, str]:
    """Splits a docstring at its sections: ``""`` holds the text before them, ``"Source"`` what follows that word."""
    cut = [(m.start(), m.end(), m[1]) for m in HEAD.finditer(docstring)]
    found = {"": docstring[: cut[0][0] if cut else None].strip()}
    for i, (_, end, name) in enumerate(cut):
        stop = cut[i + 1][0] if i + 1 < len(cut) else None
        found[name] = " ".join(docstring[end:stop].split())
    if "Source" in found and "Differs" not in found and "Differs" in found["Source"]:
        source, _, rest = found["Source"].partition("Differs")
        found["Source"], found["Differs"] = source.strip(), rest.lstrip(": ").strip()
    return found


def mathml(latex: str, *, block: bool = False) -> str:
    """Returns a formula on one line of MathML, or in code type without the package ``latex2mathml``."""
    latex = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}\\,", " ".join(latex.split()))
    try:
        from latex2mathml.converter import convert
    except ImportError:
        return f"`{latex}`"
    return convert(latex, display="block" if block else "inline").replace("\n", "")


@cache
def find(dotted: str) -> Any:
    """Returns the object of a dotted name; ``None`` if there is none."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


def canonical(name: str, module: str = "tokengraph") -> str:
    """Returns where an object of that name is defined, as ``tokengraph.select.tome.ToMe``; empty if unknown."""
    for dotted in (name, f"{module}.{name}"):
        found = find(dotted) if "." in dotted else None
        if found is not None and getattr(found, "__qualname__", None) and getattr(found, "__module__", None):
            return f"{found.__module__}.{found.__qualname__}"
    return ""


def _shown(target: str, link: Link | None) -> str:
    words, _, name = target.rpartition("<")
    name = name.rstrip(">").lstrip("~!")
    shown = words.strip() or (name.rpartition(".")[2] if target.startswith("~") else name.removeprefix("tokengraph."))
    return link(shown, name) if link else f"`{shown}`"
