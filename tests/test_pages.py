"""The written pages of the site below docs/: their code runs, and their links lead to files."""

import re
import sys
import types
from pathlib import Path

import pytest
from needs import library

from tokengraph.select import base

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if p.parent != DOCS or p.name == "models.md")
BLOCKS = re.compile(r"```python\n(.*?)```", flags=re.S)
WITH_CODE = [page for page in PAGES if BLOCKS.search(page.read_text(encoding="utf-8"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """All blocks of a page share their names, as for a reader who types them in one session."""
    text = page.read_text(encoding="utf-8")
    for name in ("timm", "transformers"):
        if f"compat import {name}" in text:
            library(name)
    if "load_photo" in text:
        pytest.importorskip("skimage")
    if "savefig" in text:
        pytest.importorskip("matplotlib")
    module = types.ModuleType("page_of_the_site")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(BLOCKS.findall(text)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), module.__dict__)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_written_pages_lead_to_files(page):
    """In the repository. Pages that are made while the site builds are checked by its strict build."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    made = ("results/truth.md", "truth.md", "realigned.md", "api/")
    dead = []
    for target in LINK.findall(text):
        address = target.partition("#")[0]
        if address and not re.match(r"\w+:", target) and not address.startswith(made):
            dead += [target] if not (page.parent / address).exists() else []
    assert dead == []


def test_readme_stays_short_and_says_early_that_no_gpu_was_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) < 10_000
    assert "Not yet measured on a GPU" in text[:1500]


def test_navigation_names_every_written_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    below = [p.relative_to(DOCS).as_posix() for p in DOCS.glob("*/*.md")]  # the hook adds those beside index.md
    assert [path for path in below if path not in nav] == []


def test_files_that_written_pages_name_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(re.findall(r"`((?:tests|tokengraph|examples|benchmarks|website)/[\w/]+(?:\.\w+)?/?)`", text))
    assert len(names) > 20 and sorted(name for name in names if not (ROOT / name).exists()) == []
