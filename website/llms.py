"""``llms.txt``: the pages in one list, for language models that read the site."""

from __future__ import annotations

import inspect
import re

from website import api, results
from website.measured import ROOT
from website.names import strategies
from website.text import to_markdown


def text() -> str:
    """Returns the list, by the form of llmstxt.org."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    about = next(p for p in readme.split("\n\n") if p and p[0].isalpha())
    lines = ["# tokengraph", "", "> " + " ".join(about.split()), "", "## Guides", ""]
    for path in sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.md")]):
        head = re.search(r"^# (.+)", path.read_text(encoding="utf-8"), flags=re.M)
        lines.append(f"- [{head[1] if head else path.stem}]({_html(path.relative_to(ROOT / 'docs').as_posix())})")
    lines += ["", "## Strategies", ""]
    for name, kind in strategies().items():
        first = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        lines.append(f"- [{kind.__name__}](strategies/{name}.html): {to_markdown(first)}")
    lines += ["", "## Results", "", *(f"- [{t}]({_html(p)})" for t, p in results.titles().items())]
    lines += ["", "## Reference", "", *(f"- [{t}]({_html(p)})" for t, p in api.titles().items())]
    return "\n".join(lines) + "\n"


def _html(path: str) -> str:
    return path.removesuffix(".md") + ".html"
