"""The pages in docs/: their code runs, page by page, and the names in their tables exist."""

import re
import sys
import types
from pathlib import Path

import pytest
from needs import library

import tokengraph as tg
from tokengraph.adapters import Adapter
from tokengraph.select import base
from tokengraph.select.tokens import Tokens
from tokengraph.testing import MODEL_LAWS, SELECT_LAWS

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(page for page in DOCS.glob("*.md") if page.stem != "models")  # whose code runs in test_pages
PRINTED = {  # by pages that do not end with the counts of a model of 16 patches
    "coarsening": [
        *(
            rf"{method} \[49, 49\] \d+ torch.Size\(\[392, 64\]\)"
            for method in ("heavy-edges", "local-variation", "modularity", "spectral", "farthest-points")
        ),
        r"\[60, 30\]\n\[392, 196, 98, 50\]",
        r"\[49, 49\] Gated\(",
    ],
    "vlm": [r"4 of 16 visual tokens", r"\[16\] 8", r"^\[8\]$", r"\[16, 8, 8, 8\]"],
    "vlm_servers": [r"^144$", r"\[4, 12\]\n\[4, 12\]", r"\[16, 32\]"],
}
HOW_TO = sorted(DOCS.glob("adding_*.md"))  # pages that end with a model whose tokens are reduced


def code(page):
    """The Python blocks of a page, in order, as one script."""
    return "\n\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page, tmp_path, monkeypatch, capsys):
    library("transformers" if page.stem == "vlm" else "timm")
    script = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", script)
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))  # a strategy of a page is known in it alone
    monkeypatch.chdir(tmp_path)
    exec(compile(code(page), str(page), "exec"), script.__dict__)
    printed = capsys.readouterr().out
    for line in PRINTED.get(page.stem, [r"\[16, "]):
        assert re.search(line, printed, flags=re.M), line


def test_tables_name_what_exists():
    strategy, family = ((DOCS / f"adding_a_{name}.md").read_text(encoding="utf-8") for name in ("strategy", "family"))
    fields = re.findall(r"^\| `tokens\.(\w+)", strategy, flags=re.M)
    assert len(fields) >= 6
    assert [name for name in fields if not hasattr(Tokens, name) and name not in Tokens.__dataclass_fields__] == []
    attributes = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", strategy, flags=re.M)
    assert len(attributes) >= 6
    assert {name: repr(getattr(tg.Select, name)) for name, _ in attributes} == {
        name: default.replace('"', "'") for name, default in attributes
    }
    rows = re.search(r"^\| method or attribute.*?\n\n", family, flags=re.M | re.S)
    optional = [n for row in re.findall(r"^\| (`.+?) \|", rows[0], flags=re.M) for n in re.findall(r"`(\w+)`", row)]
    assert len(optional) >= 7
    assert [name for name in optional if not hasattr(Adapter, name)] == []


def test_files_that_pages_name_exist():
    for page in PAGES:
        names = re.findall(r"`((?:tests|tokengraph|examples)/[\w/]+(?:\.py)?)`", page.read_text(encoding="utf-8"))
        assert len(names) >= 5 or page not in HOW_TO
        new = "tokengraph/select/pieces.py"  # the file that the page tells to write
        assert [name for name in names if name != new and not (DOCS.parent / name).exists()] == []


def test_laws_that_pages_name_exist():
    known = {law.__name__ for law in [*SELECT_LAWS, *MODEL_LAWS]}
    for page in HOW_TO:
        rows = page.read_text(encoding="utf-8").split("| message | cause |")[1].split("\n\n")[0]
        named = re.findall(r"^\| `(\w+_\w+)`", rows, flags=re.M)
        assert len(named) >= 4 and set(named) <= known
