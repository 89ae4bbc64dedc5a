"""Links of pages: those of files at the root are moved, and those to files that the site does not have become code."""

from __future__ import annotations

import posixpath
import re

from website.measured import ROOT

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(```.*?```)", flags=re.S)
PAGES = {  # files of the repository that are pages under another name
    "README.md": "index.md",
    "CHANGELOG.md": "about/changelog.md",
    "CONTRIBUTING.md": "about/contributing.md",
    "notebooks": "notebooks/01_first_steps.md",
    "benchmarks/results/truth/README.md": "results/truth.md",
    "benchmarks/results/truth/planned.md": "results/planned.md",
}


def from_root(text: str, path: str) -> str:
    """Rewrites the links of a file at the root of the repository for its page at ``path`` below ``docs/``."""
    return _each(text, lambda target: _relative(_page(target), path))


def placed(text: str, path: str) -> str:
    """Rewrites the links of a page of ``docs/`` that lead out of that folder."""

    def move(target: str) -> str | None:
        """The link as the site has it; ``None`` for a file that the site does not have."""
        there = posixpath.normpath(posixpath.join("docs", posixpath.dirname(path), target))
        return target if there.startswith("docs/") else _relative(_page(there), path)

    return _each(text, move)


def targets(text: str) -> list[str]:
    """Returns where the links and pictures of a text lead, code blocks left out."""
    return [m[3] for part in FENCE.split(text)[::2] for m in LINK.finditer(part)]


def _page(target: str) -> str | None:
    """The path below ``docs/`` of a file of the repository; ``None`` if the site does not have it."""
    target = posixpath.normpath(target)
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if target.startswith("docs/") and (ROOT / target).exists() else None


def _relative(page: str | None, path: str) -> str | None:
    return None if page is None else posixpath.relpath(page, posixpath.dirname(path) or ".")


def _each(text: str, move) -> str:
    def one(match: re.Match[str]) -> str:
        """One link, rewritten."""
        picture, words, target = match.groups()
        address, _, anchor = target.partition("#")
        if not address or re.match(r"\w+:", target):
            return match[0]
        moved = move(address)
        if moved is None:
            return words if picture or words.startswith("`") else f"{words} (`{address}`)"
        return f"{picture}[{words}]({moved}{'#' + anchor if anchor else ''})"

    parts = FENCE.split(text)
    return "".join(part if i % 2 else LINK.sub(one, part) for i, part in enumerate(parts))
