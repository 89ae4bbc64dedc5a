"""Extension of griffe, which reads docstrings for the reference: roles become links, formulas MathML."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from website.text import canonical, to_markdown  # noqa: E402


class Roles(griffe.Extension):
    """Rewrites every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring is None:
            return
        module = obj.module.path if obj.module is not None else "tokengraph"
        places = [module, *(f"{module}.{c}" for c in _classes(obj))]

        def link(shown: str, name: str) -> str:
            """A link to the first place where the name is found; code type where no page documents it."""
            for place in reversed(places):
                if dotted := canonical(name, place):
                    return f'<autoref identifier="{dotted}" optional>`{shown}`</autoref>'
            return f"`{shown}`"

        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)  # griffe's name of the section
        obj.docstring.value = to_markdown(text, link)


def _classes(obj: griffe.Object) -> list[str]:
    found, parent = [], obj if obj.is_class else obj.parent
    while parent is not None and parent.is_class:
        found.append(parent.name)
        parent = parent.parent
    return found
