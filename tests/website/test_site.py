"""The made pages: a whole one for each strategy, and tables that agree with results and registry."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tokengraph as tg
from website import api, gallery, llms, models, results
from website.names import everything, page_of, strategies
from website.readme import when
from website.strategies import linked, overview, page, provenance

ROOT = Path(__file__).parents[2]


def test_every_strategy_has_a_row_in_the_table_of_strategies():
    lacking = [kind.__name__ for kind in strategies().values() if kind.__name__ not in provenance()]
    assert lacking == [], "add a row to docs/strategies/index.md"


@pytest.mark.parametrize("name", tg.registry())
def test_page_of_a_strategy_is_whole(name):
    if name not in strategies():
        pytest.skip("a strategy of a test's own")
    text = page(name)
    for head in ("Definition", "Parts", "Where it comes from", "Cost", "Measured", "Reference"):
        assert f"\n## {head}\n" in text, head
    assert ":func:`" not in text and ".. math" not in text
    line = re.search(r"```python\n(tg\.attach.*)\n```", text)[1]
    compile(line, name, "eval")


def test_every_public_name_is_on_a_page():
    public = {
        f"{v.__module__}.{v.__qualname__}"
        for v in map(lambda n: getattr(tg, n), tg.__all__)
        if hasattr(v, "__qualname__")
    }
    assert public <= set(everything()) and set(page_of()) == set(everything())
    assert set(api.titles().values()) == {at for at in page_of().values() if at.startswith("api/")}


def test_overview_and_first_column_link_to_pages():
    assert overview().count("\n") == len(strategies()) + 1
    assert linked("| `ToMe`, `Other` | `ToMe` |\n") == "| [`ToMe`](tome.md), `Other` | `ToMe` |\n"


def test_models_have_families_and_versions():
    assert all(f"| {a.family} |" in models.families() for a in tg.adapters.ADAPTERS)
    assert re.search(r"\| timm \| [\d.]+ \| [\d.]+ \|", models.versions())


def test_results_pages_carry_their_pictures():
    made = results.pages()
    pictures = [
        f"results/{name}"
        for text in made.values()
        if isinstance(text, str)
        for name in re.findall(r"\]\(([^)]+\.png)\)", text)
    ]
    assert pictures and set(pictures) <= set(made)
    assert results.contents().count("\n") == len(results.titles()) + 1


def test_results_name_commands_that_exist():
    commands = re.findall(r"`python (benchmarks/[\w./]+)", results.contents())
    assert len(commands) > 20 and [name for name in commands if not (ROOT / name).exists()] == []


def test_llms_txt_lists_every_strategy():
    text = llms.text()
    assert text.startswith("# tokengraph\n\n> ") and all(f"strategies/{name}.html" in text for name in strategies())


def test_readme_has_the_table_of_the_stored_results():
    assert when() in (ROOT / "README.md").read_text(encoding="utf-8"), "make readme"


def test_gallery_is_small():
    files = list(gallery.FOLDER.glob("*.webp"))
    assert len(files) > 20 and sum(file.stat().st_size for file in files) < 2_000_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs: the extra docs")
def test_site_builds_without_a_dead_link_or_reference(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = re.compile(r'(?:src|href)="(https?:)?//[^"]+\.(?:js|css|woff2?)"')
    assert [p.name for p in tmp_path.rglob("*.html") if loaded.search(p.read_text(encoding="utf-8"))] == []
