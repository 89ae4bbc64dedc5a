"""MkDocs calls this: it adds the pages that are made while the site builds, and fills in the marks of written ones.

``<!-- made: strategies -->`` in a page of ``docs/`` stands for the text that a function of ``MADE`` returns.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from website import api, gallery, llms, models, notebooks, results, strategies  # noqa: E402
from website.links import from_root, placed  # noqa: E402
from website.measured import ROOT  # noqa: E402
from website.names import strategies as registered  # noqa: E402

MARK = re.compile(r"<!-- made: ([\w-]+) -->")
MADE = {
    "strategies": strategies.overview,
    "families": models.families,
    "versions": models.versions,
    "readme-results": results.readme_table,
    "results": results.contents,
    "gallery": gallery.every,
}
COPIED = {  # files outside docs/ that are pages too
    "index.md": "README.md",
    "about/changelog.md": "CHANGELOG.md",
    "about/contributing.md": "CONTRIBUTING.md",
}


def pages() -> dict[str, str | bytes]:
    """Returns every made file by its path below ``docs/``."""
    found: dict[str, str | bytes] = {}
    for path, source in COPIED.items():
        found[path] = from_root((ROOT / source).read_text(encoding="utf-8"), path)
    found["index.md"] = f"---\nhide: [navigation]\n---\n\n{found['index.md']}"
    for name in registered():
        found[f"strategies/{name}.md"] = strategies.page(name)
        found |= strategies.pictures(name)
    for file in sorted(notebooks.FOLDER.glob("*.ipynb")):
        page, drawn = notebooks.markdown(json.loads(file.read_text(encoding="utf-8")), file.stem)
        found[f"notebooks/{file.stem}.md"] = page
        found |= {f"notebooks/{name}": content for name, content in drawn.items()}
    found |= results.pages() | api.pages()
    found["llms.txt"] = llms.text()
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the made pages."""
    for path, content in pages().items():
        if existing := files.get_file_from_path(path):
            files.remove(existing)
        files.append(File.generated(config, path, content=content))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation: a page for each strategy, parts of the reference, and pages that no entry names."""
    nav: list[Any] = config.nav or []
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r"'([^']+\.md)'", repr(nav)))
    for entry in nav:
        if "How to" in entry:
            entry["How to"] += sorted(written - named)
        if "Strategies" in entry:
            kinds = registered().items()
            entry["Strategies"] = ["strategies/index.md", *({c.__name__: f"strategies/{n}.md"} for n, c in kinds)]
        if "Notebooks" in entry:
            entry["Notebooks"] = [f"notebooks/{file.stem}.md" for file in sorted(notebooks.FOLDER.glob("*.ipynb"))]
        if "Results" in entry:
            entry["Results"] = ["results/index.md", *({title: path} for title, path in results.titles().items())]
        if "Reference" in entry:
            entry["Reference"] = ["api/index.md", *({title: path} for title, path in api.titles().items())]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in marks, and points links to files that are no pages nowhere: they become code type."""
    markdown = MARK.sub(lambda m: MADE[m[1]](), markdown)
    if page.file.src_uri == "strategies/index.md":
        markdown = strategies.linked(markdown)
    return placed(markdown, page.file.src_uri)
